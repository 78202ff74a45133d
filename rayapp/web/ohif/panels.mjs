/** The one panel of a page, which OHIF mounts and unmounts as it likes: what is in it stays. */

import { Panel } from './panel.mjs';
import { works } from './works.mjs';

/** @type {Panel|null} */
let panel = null;

/** The panel, or null until OHIF has shown it for the first time. */
export const current = () => panel;

/** Put the panel into a node of OHIF's. @param {HTMLElement} node @param {Services} services */
export function mount(node, services) {
  panel ??= new Panel(services);
  node.append(panel.node);
}

/** The mode is left: its viewports, tools and segmentations go. */
export function leave() {
  works.leave();
  panel?.close();
  panel = null;
}
