/** OHIF's segmentation mode with our panel first on the right. */

import { claimMenu } from './commands.mjs';
import { leave } from './panels.mjs';
import { MODE } from './words.mjs';

const PANEL = 'rayapp.panelModule.rayapp';
const TOOLS = '@ohif/extension-cornerstone.panelModule.panelSegmentationWithToolsLabelMap';

export default {
  id: 'rayapp',
  /** @param {{loadModules: (names: string[]) => Promise<{modeInstance: Mode}[]>}} context */
  async modeFactory({ loadModules }) {
    const [segmentation, basic] = await loadModules(['@ohif/mode-segmentation', '@ohif/mode-basic']);
    const base = segmentation.modeInstance;
    const [route] = base.routes;
    const layout = {
      ...route.layoutInstance,
      props: { ...route.layoutInstance.props, rightPanels: [PANEL, TOOLS], rightPanelClosed: false },
    };
    return {
      ...base,
      id: 'rayapp',
      routeName: 'rayapp',
      displayName: MODE,
      // The segmentation mode's own hook would switch to another panel whenever a segmentation appears.
      /** @param {{commandsManager: import('./commands.mjs').CommandsManager}} context */
      onModeEnter(context) {
        claimMenu(context.commandsManager);
        basic.modeInstance.onModeEnter.call(this, context);
      },
      /** @param {object} context */
      onModeExit(context) {
        leave(); // first: the base removes the segmentations
        base.onModeExit.call(this, context);
      },
      hangingProtocol: ['@ohif/mnGrid', 'default'],
      routes: [{ ...route, path: 'rayapp', layoutInstance: layout }],
    };
  },
};
