/** Strokes for the scribble models: OHIF's brush paints them as two segments of the labelmap, taken out before use. */

import { groupsOf } from './tools.mjs';
import { STROKES } from './words.mjs';

export const TOOL = 'CircularBrush';
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
 * Separate the strokes from a label map.
 *
 * @param {Labels} labels
 * @param {Labels|null} under the labels that the strokes were painted over
 * @returns {{rest: Labels, strokes: Labels}} the labels without strokes, and the strokes alone as 1 and 2
 */
export function split(labels, under) {
  const strokes = new Uint8Array(labels.length);
  const rest = labels.map((value, at) => {
    if (value !== ON && value !== OFF) {
      return value;
    }
    strokes[at] = value === ON ? 1 : 2;
    return under ? under[at] : 0;
  });
  return { rest, strokes };
}

/** Earlier strokes with later ones on top. @param {Labels|null} earlier @param {Labels} strokes */
export function joined(earlier, strokes) {
  return earlier ? strokes.map((value, at) => value || earlier[at]) : strokes;
}

/** Set the brush to the width of strokes. @param {ToolGroupService} service */
export function install(service) {
  for (const group of groupsOf(service)) {
    if (group.hasTool(TOOL)) {
      window.cornerstoneTools.utilities.segmentation.setBrushSizeForToolGroup(group.id, RADIUS, TOOL);
    }
  }
}
