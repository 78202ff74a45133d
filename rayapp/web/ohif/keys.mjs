/** Keys of the panel's buttons, each with Shift. */

const KEYS = {
  A: 'segment',
  F: 'foreground',
  B: 'background',
  R: 'corner',
  P: 'extreme',
  C: 'curve',
  D: 'stroke-on',
  E: 'stroke-off',
  O: 'scribble',
  X: 'stop',
  Z: 'undo',
  S: 'save',
  N: 'next',
  U: 'uncertainty',
};

/** Press the panel's buttons by keys, but while somebody types; returns what ends that. */
export function watch(node) {
  const pressed = event => {
    const typing = event.target.closest?.('input, textarea, select');
    const name = KEYS[event.key.toUpperCase()];
    if (!name || typing || !event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    node.querySelector(`[name=${name}]`).click();
  };
  document.addEventListener('keydown', pressed, true);
  return () => document.removeEventListener('keydown', pressed, true);
}
