/** The tool that places points, and the dots it leaves. */

export const TOOL = 'RayappPoint';

let made = null;

/** Register the tool and let these tool groups have it. */
export function install(toolGroupService) {
  const { ProbeTool, addTool } = window.cornerstoneTools;
  if (!made) {
    made = class extends ProbeTool {
      static toolName = TOOL;
      constructor(toolProps = {}, defaults = { configuration: { getTextLines: () => [], shadow: false } }) {
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

/** Let the first mouse button place points, or give it back to OHIF's window tool. */
export function activate(toolGroupService, on) {
  const { Enums, WindowLevelTool } = window.cornerstoneTools;
  const first = { bindings: [{ mouseButton: Enums.MouseBindings.Primary }] };
  for (const id of ['default', 'mpr']) {
    const group = toolGroupService.getToolGroup(id);
    if (!group?.hasTool(TOOL)) {
      continue;
    }
    if (on) {
      const active = group.getActivePrimaryMouseButtonTool();
      if (active && active !== TOOL) {
        group.setToolPassive(active);
      }
      group.setToolActive(TOOL, first);
    } else {
      group.setToolPassive(TOOL);
      group.setToolActive(WindowLevelTool.toolName, first);
    }
  }
}

/** Call `placed(annotation)` for each point that was set; returns what ends that. */
export function listen(placed) {
  const { eventTarget } = window.cornerstone;
  const name = window.cornerstoneTools.Enums.Events.ANNOTATION_COMPLETED;
  const heard = event => {
    const { annotation } = event.detail;
    if (annotation?.metadata?.toolName === TOOL) {
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

export function remove(annotation) {
  window.cornerstoneTools.annotation.state.removeAnnotation(annotation.annotationUID);
  for (const { viewports } of window.cornerstone.getRenderingEngines().map(engine => ({
    viewports: engine.getViewports(),
  }))) {
    viewports.forEach(viewport => viewport.render());
  }
}
