/** The tool that draws closed curves around a structure, on one slice. */

import { installer } from './tools.mjs';

export const TOOL = 'RayappCurve';

/** Register the tool and let the tool groups have it. */
export const install = installer(TOOL, 'PlanarFreehandROITool', () => ({
  allowOpenContours: false,
  calculateStats: false,
  displayOnePointAsCrosshairs: false,
  getTextLines: () => [],
  subPixelResolution: 4,
}));

/** The voxels that a curve goes through, each once in a row; null if it leaves the image. */
export function voxels(annotation, labelmap) {
  const found = annotation.data.contour.polyline.map(world => labelmap.voxelAt(world));
  if (found.includes(null)) {
    return null;
  }
  return found.filter((voxel, at) => voxel.join() !== found.at(at - 1).join());
}
