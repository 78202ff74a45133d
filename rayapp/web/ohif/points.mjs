/** The tool that places points, and the dots it leaves. */

import { installer } from './tools.mjs';

export const TOOL = 'RayappPoint';

/** Register the tool and let the tool groups have it. */
export const install = installer(TOOL, 'ProbeTool', () => ({ getTextLines: () => [], shadow: false }));

/** Call `placed(annotation)` for each mark that a tool set; returns what ends that. */
export function listen(tool, placed) {
  const { eventTarget } = window.cornerstone;
  const name = window.cornerstoneTools.Enums.Events.ANNOTATION_COMPLETED;
  const heard = ({ detail: { annotation } }) => {
    if (annotation?.metadata?.toolName === tool) {
      placed(annotation);
    }
  };
  eventTarget.addEventListener(name, heard);
  return () => eventTarget.removeEventListener(name, heard);
}

export const world = annotation => [...annotation.data.handles.points[0]];

/** Draw a dot in this colour. */
export function paint(annotation, [r, g, b]) {
  const { config } = window.cornerstoneTools.annotation;
  const color = `rgb(${r}, ${g}, ${b})`;
  config.style.setAnnotationStyles(annotation.annotationUID, { color, colorHighlighted: color, colorSelected: color });
}

/** The dots of a prompt that was said earlier, each in the colour of its name. */
export function of({ clicks = {}, extremes = {} }, labelmap, colourOf) {
  const said = [clicks, extremes].flatMap(Object.entries);
  return said.flatMap(([name, voxels]) => voxels.map(voxel => dot(labelmap.sliceAt(voxel), colourOf(name))));
}

function dot({ world, plane, imageId }, rgb) {
  const { annotation } = window.cornerstoneTools;
  const [r, c] = [plane.rowCosines, plane.columnCosines];
  const made = {
    annotationUID: crypto.randomUUID(),
    highlighted: false,
    invalidated: false,
    metadata: {
      toolName: TOOL,
      FrameOfReferenceUID: plane.frameOfReferenceUID,
      referencedImageId: imageId,
      viewPlaneNormal: [r[1] * c[2] - r[2] * c[1], r[2] * c[0] - r[0] * c[2], r[0] * c[1] - r[1] * c[0]],
      viewUp: c.map(value => -value),
    },
    data: { label: '', handles: { points: [world] }, cachedStats: {} },
  };
  annotation.state.addAnnotation(made, plane.frameOfReferenceUID);
  paint(made, rgb);
  return made;
}

export function remove(annotation) {
  window.cornerstoneTools.annotation.state.removeAnnotation(annotation.annotationUID);
  const viewports = window.cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports());
  viewports.forEach(viewport => viewport.render());
}
