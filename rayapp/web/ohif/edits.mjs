/** Notices what is painted in the viewer by hand, with whichever of its tools. */

import { hex } from './random.mjs';

const SETTLED_MS = 100; // after the last change, so that a movement is taken over as a whole
const LONGEST_MS = 1500; // while the button is held

/**
 * @param {(segmentationId: string, group: string) => void} painted is called some time after voxels of a segmentation
 *   have changed; `group` is the same for all changes of one movement with the button held
 * @returns {() => void} stops watching
 */
export function watch(painted) {
  const { eventTarget } = window.cornerstone;
  const name = window.cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
  let group = hex(4);
  let held = false;
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */
  const waiting = new Map();
  const tell = (/** @type {string} */ id) => {
    waiting.delete(id);
    painted(id, group);
  };
  const wait = (/** @type {string} */ id, /** @type {number} */ ms) => {
    clearTimeout(waiting.get(id));
    waiting.set(id, setTimeout(() => tell(id), ms));
  };
  const changed = (/** @type {Event} */ event) => {
    const id = /** @type {CustomEvent<{segmentationId: string}>} */ (event).detail.segmentationId;
    if (!held) {
      wait(id, SETTLED_MS);
    } else if (!waiting.has(id)) {
      wait(id, LONGEST_MS);
    }
  };
  const pressed = () => {
    [...waiting.keys()].forEach(id => {
      clearTimeout(waiting.get(id));
      tell(id);
    });
    [held, group] = [true, hex(4)];
  };
  const released = () => {
    held = false;
    [...waiting.keys()].forEach(id => wait(id, SETTLED_MS));
  };
  const listened = /** @type {const} */ ([
    [eventTarget, name, changed],
    [window, 'pointerdown', pressed],
    [window, 'pointerup', released],
    [window, 'pointercancel', released],
  ]);
  listened.forEach(([target, type, heard]) => target.addEventListener(type, heard, true));
  return () => {
    listened.forEach(([target, type, heard]) => target.removeEventListener(type, heard, true));
    waiting.forEach(timer => clearTimeout(timer));
  };
}
