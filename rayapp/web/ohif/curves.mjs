/** The tool that draws closed curves around a structure, on one slice. */

export const TOOL = 'RayappCurve';

let made = null;

/** Register the tool and let these tool groups have it. */
export function install(toolGroupService) {
  const { PlanarFreehandROITool, addTool } = window.cornerstoneTools;
  if (!made) {
    made = class extends PlanarFreehandROITool {
      static toolName = TOOL;
      constructor(
        toolProps = {},
        defaults = {
          configuration: {
            allowOpenContours: false,
            calculateStats: false,
            displayOnePointAsCrosshairs: false,
            getTextLines: () => [],
            subPixelResolution: 4,
          },
        }
      ) {
        super(toolProps, defaults);
      }
    };
    addTool(made);
  }
  for (const id of ['default', 'mpr']) {
    const group = toolGroupService.getToolGroup(id);
    if (group && !group.hasTool(TOOL)) {
      group.addTool(TOOL);
    }
  }
}

/** The voxels that a curve goes through, each once in a row; null if it leaves the image. */
export function voxels(annotation, labelmap) {
  const found = annotation.data.contour.polyline.map(world => labelmap.voxelAt(world));
  if (found.includes(null)) {
    return null;
  }
  return found.filter((voxel, at) => voxel.join() !== found.at(at - 1).join());
}
