/** The tool that places points, and the points it leaves on the screen. */

import { hex } from './random.mjs';
import { installer } from './tools.mjs';

export const TOOL = 'RayappPoint';

/** Register the tool and add it to the tool groups. */
export const install = installer(TOOL, 'ProbeTool', () => ({ getTextLines: () => [], shadow: false }));

/**
 * Call back for each annotation that a tool completes.
 *
 * @param {string} tool
 * @param {(annotation: Annotation) => void} completed
 * @returns {() => void} stops listening
 */
export function listen(tool, completed) {
  const { eventTarget } = window.cornerstone;
  const name = window.cornerstoneTools.Enums.Events.ANNOTATION_COMPLETED;
  const heard = (/** @type {Event} */ event) => {
    const { annotation } = /** @type {CustomEvent<{annotation?: Annotation}>} */ (event).detail;
    if (annotation?.metadata?.toolName === tool) {
      completed(annotation);
    }
  };
  eventTarget.addEventListener(name, heard);
  return () => eventTarget.removeEventListener(name, heard);
}

/** A point's position in LPS millimetres. @param {Annotation} annotation @returns {Point3} */
export const world = annotation => [...annotation.data.handles.points[0]];

/**
 * Draw a mark in this colour. It can no longer be moved, which would not move the prompt, so that another point can be
 * placed on it.
 *
 * @param {Annotation} annotation
 * @param {Colour} colour
 */
export function paint(annotation, [r, g, b]) {
  const { config, locking } = window.cornerstoneTools.annotation;
  locking.setAnnotationLocked(annotation.annotationUID, true);
  const color = `rgb(${r}, ${g}, ${b})`;
  config.style.setAnnotationStyles(annotation.annotationUID, { color, colorHighlighted: color, colorSelected: color });
}

/**
 * The points of an earlier prompt, drawn again.
 *
 * @param {import('./server.mjs').Prompt} prompt
 * @param {import('./labelmap.mjs').Labelmap} labelmap
 * @param {(name: string) => Colour} colourOf of a point by the name that it was given under
 */
export function of({ clicks = {}, extremes = {} }, labelmap, colourOf) {
  const given = [clicks, extremes].flatMap(Object.entries);
  return given.flatMap(([name, voxels]) =>
    voxels.map((/** @type {number[]} */ voxel) => draw(labelmap.sliceAt(voxel), colourOf(name)))
  );
}

/** @param {{world: Point3, plane: ImagePlane, imageId: string}} place @param {Colour} colour */
function draw({ world, plane, imageId }, colour) {
  const { annotation } = window.cornerstoneTools;
  const [r, c] = [plane.rowCosines, plane.columnCosines];
  const point = {
    annotationUID: hex(16),
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
  annotation.state.addAnnotation(point, plane.frameOfReferenceUID);
  paint(point, colour);
  return point;
}

/** Take an annotation off the screen. @param {Annotation} annotation */
export function remove(annotation) {
  window.cornerstoneTools.annotation.state.removeAnnotation(annotation.annotationUID);
  const viewports = window.cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports());
  viewports.forEach(viewport => viewport.render());
}
