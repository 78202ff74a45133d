/** The viewer's tool groups, and adding a tool to them. */

/** Ids of the tool groups of OHIF's modes that show slices. */
export const GROUPS = ['default', 'mpr'];

/** These tool groups, as far as they exist. @param {ToolGroupService} service */
export const groupsOf = service =>
  GROUPS.flatMap(id => {
    const group = service.getToolGroup(id);
    return group ? [group] : [];
  });

/**
 * A function that registers a tool once and adds it to all tool groups.
 *
 * @param {string} name
 * @param {'ProbeTool'|'PlanarFreehandROITool'} base the Cornerstone tool that it extends
 * @param {() => object} configuration in place of the base's
 * @returns {(service: ToolGroupService) => void}
 */
export function installer(name, base, configuration) {
  /** @type {ToolConstructor|null} */
  let tool = null;
  return service => {
    if (!tool) {
      tool = class extends window.cornerstoneTools[base] {
        static toolName = name;
        constructor(toolProps = {}, defaults = { configuration: configuration() }) {
          super(toolProps, defaults);
        }
      };
      window.cornerstoneTools.addTool(tool);
    }
    for (const group of groupsOf(service)) {
      if (!group.hasTool(name)) {
        group.addTool(name);
      }
    }
  };
}
