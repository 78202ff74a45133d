/** The tool that draws closed curves around a structure, on one slice. */

import { installer } from './tools.mjs';

export const TOOL = 'RayappCurve';

/** Register the tool and add it to the tool groups. */
export const install = installer(TOOL, 'PlanarFreehandROITool', () => ({
  allowOpenContours: false,
  calculateStats: false,
  displayOnePointAsCrosshairs: false,
  getTextLines: () => [],
  subPixelResolution: 4,
}));

/**
 * A curve's points as (fractional) voxel indices, without repetitions in a row; null if it leaves the image.
 *
 * Along the axis across the slice, which is the one along which they differ least, all have the slice's whole index.
 *
 * @param {Annotation} annotation
 * @param {import('./labelmap.mjs').Labelmap} labelmap
 * @returns {number[][]|null}
 */
export function outline(annotation, labelmap) {
  const points = (annotation.data.contour?.polyline ?? []).map(world => labelmap.indexAt(world));
  if (points.some(point => point === null)) {
    return null;
  }
  const drawn = /** @type {number[][]} */ (points);
  const spread = [0, 1, 2].map(axis => {
    const along = drawn.map(point => point[axis]);
    return Math.max(...along) - Math.min(...along);
  });
  const across = spread.lastIndexOf(Math.min(...spread));
  return drawn
    .map(point => point.map((at, axis) => (axis === across ? Math.round(at) : Math.round(at * 1000) / 1000)))
    .filter((point, at, all) => point.join() !== all.at(at - 1)?.join());
}
