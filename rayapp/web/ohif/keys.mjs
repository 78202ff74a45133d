/** Keyboard shortcuts of the panel's buttons, each with Shift. */

import { BUTTONS } from './words.mjs';

const NAMES = new Map(Object.entries(BUTTONS).map(([name, { key }]) => [key, name]));

/**
 * Press the buttons in `node` by keys, except while the user types.
 *
 * @param {HTMLElement} node
 * @returns {() => void} stops listening
 */
export function watch(node) {
  const pressed = (/** @type {KeyboardEvent} */ event) => {
    const typing = event.target instanceof Element && event.target.closest('input, textarea, select');
    const name = NAMES.get(event.key.toUpperCase());
    if (!name || typing || !event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    /** @type {HTMLButtonElement|null} */ (node.querySelector(`[name=${name}]`))?.click();
  };
  document.addEventListener('keydown', pressed, true);
  return () => document.removeEventListener('keydown', pressed, true);
}
