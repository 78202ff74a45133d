/** The viewer's tool groups, and how a tool of ours comes into them. */

/** The groups of OHIF's modes that show slices, those that there are. */
export const groupsOf = toolGroupService => ['default', 'mpr'].map(id => toolGroupService.getToolGroup(id)).filter(Boolean);

/** What installs a tool by that name: one of cornerstone's (`base`) with these settings in place of its own. */
export function installer(name, base, configuration) {
  let made = null;
  return toolGroupService => {
    if (!made) {
      made = class extends window.cornerstoneTools[base] {
        static toolName = name;
        constructor(toolProps = {}, defaults = { configuration: configuration() }) {
          super(toolProps, defaults);
        }
      };
      window.cornerstoneTools.addTool(made);
    }
    for (const group of groupsOf(toolGroupService)) {
      if (!group.hasTool(name)) {
        group.addTool(name);
      }
    }
  };
}
