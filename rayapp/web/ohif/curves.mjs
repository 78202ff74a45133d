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
 * The voxels that a curve passes through, without repetitions in a row; null if it leaves the image.
 *
 * @param {Annotation} annotation
 * @param {import('./labelmap.mjs').Labelmap} labelmap
 * @returns {number[][]|null}
 */
export function voxels(annotation, labelmap) {
  /** @type {number[][]} */
  const path = [];
  for (const world of annotation.data.contour?.polyline ?? []) {
    const voxel = labelmap.voxelAt(world);
    if (!voxel) {
      return null;
    }
    path.push(voxel);
  }
  return path.filter((voxel, at) => voxel.join() !== path.at(at - 1)?.join());
}
