/** Strokes for the scribble models, painted as two segments of the labelmap that never leave the page. */

import { groupsOf } from './tools.mjs';
import { STROKES } from './words.mjs';

export const TOOL = 'RayappStroke';
const RADIUS = 4; // mm, as Cornerstone measures brushes

/** The segments that strokes are painted as, above those of the structures. */
export const ON = 254;
export const OFF = 253;

/** @type {import('./labelmap.mjs').Segment[]} */
export const SEGMENTS = [
  { value: ON, label: STROKES.foreground, colour: [255, 225, 70] },
  { value: OFF, label: STROKES.background, colour: [120, 120, 255] },
];

/** The meaning of the uploaded values for `/infer`. */
export const LABEL_INFO = [
  { name: 'foreground_scribbles', id: 1 },
  { name: 'background_scribbles', id: 2 },
];

/**
 * What was painted, separated into labels and strokes.
 *
 * @param {Labels} before what was on the screen
 * @param {Labels} screen what is there now
 * @param {Labels} labels as they are known, which the screen need not show yet
 * @param {Labels} strokes likewise: 1, 2 on the screen, 3, 4 used already and no longer there
 * @returns {{labels: Labels, strokes: Labels}} with what was painted
 */
export function split(before, screen, labels, strokes) {
  const now = { labels: labels.slice(), strokes: strokes.slice() };
  for (let at = 0; at < screen.length; at++) {
    const value = screen[at];
    if (value === before[at]) {
      continue;
    }
    if (value === ON || value === OFF) {
      now.strokes[at] = value === ON ? 1 : 2;
    } else {
      now.labels[at] = value;
      now.strokes[at] = strokes[at] > 2 ? strokes[at] : 0; // a stroke that is on the screen was painted over
    }
  }
  return now;
}

/** What the screen shows. @param {Labels} labels @param {Labels} strokes @returns {Labels} */
export function over(labels, strokes) {
  const screen = labels.slice();
  for (let at = 0; at < strokes.length; at++) {
    if (strokes[at] === 1 || strokes[at] === 2) {
      screen[at] = strokes[at] === 1 ? ON : OFF;
    }
  }
  return screen;
}

/** The strokes after they were used: they leave the screen and count again the next time. @param {Labels} strokes */
export const used = strokes => strokes.map(value => (value && value < 3 ? value + 2 : value));

/** The strokes as the scribble models take them, 1 and 2. @param {Labels} strokes */
export const sent = strokes => strokes.map(value => (value > 2 ? value - 2 : value));

/** Add the tool to the tool groups: a brush of its own, so that OHIF's never paints strokes. @param {ToolGroupService} service */
export function install(service) {
  for (const group of groupsOf(service)) {
    if (!group.hasTool(TOOL)) {
      group.addToolInstance(TOOL, 'Brush', { activeStrategy: 'FILL_INSIDE_CIRCLE', brushSize: RADIUS });
      window.cornerstoneTools.utilities.segmentation.setBrushSizeForToolGroup(group.id, RADIUS, TOOL);
    }
  }
}
