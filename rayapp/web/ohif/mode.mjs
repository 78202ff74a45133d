/** OHIF's segmentation mode with our panel first on the right. */

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
      onModeEnter: basic.modeInstance.onModeEnter,
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
