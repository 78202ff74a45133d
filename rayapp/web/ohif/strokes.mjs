/** Strokes for the scribble models: drawn with OHIF's own brush as two segments of the labelmap, kept apart from it. */

import { groupsOf } from './tools.mjs';

export const TOOL = 'CircularBrush';
const RADIUS = 4; // pixels

/** The segments that the strokes are while they are drawn, above those of the structures. */
export const ON = 254;
export const OFF = 253;

export const SEGMENTS = [
  { value: ON, label: 'stroke on the structure', colour: [255, 225, 70] },
  { value: OFF, label: 'stroke beside it', colour: [120, 120, 255] },
];

/** What `/infer` is told of the upload's values. */
export const LABEL_INFO = [
  { name: 'foreground_scribbles', id: 1 },
  { name: 'background_scribbles', id: 2 },
];

/** Take the strokes out of a label map: the map without them (as it was `under` them), and they alone as 1 and 2. */
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

/** Earlier strokes and these; where both are, these. */
export function joined(earlier, strokes) {
  return earlier ? strokes.map((value, at) => value || earlier[at]) : strokes;
}

/** Make the brush as wide as strokes are. */
export function install(toolGroupService) {
  for (const group of groupsOf(toolGroupService)) {
    if (group.hasTool(TOOL)) {
      window.cornerstoneTools.utilities.segmentation.setBrushSizeForToolGroup(group.id, RADIUS, TOOL);
    }
  }
}
