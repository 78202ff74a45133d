/** OHIF's segmentation mode with our panel in front. */

const PANEL = 'rayapp.panelModule.rayapp';
const TOOLS = '@ohif/extension-cornerstone.panelModule.panelSegmentationWithToolsLabelMap';

export default {
  id: 'rayapp',
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
      displayName: 'Label with rayapp',
      // Not that of the segmentation mode, which turns to another panel when a segmentation appears.
      onModeEnter: basic.modeInstance.onModeEnter,
      hangingProtocol: ['@ohif/mnGrid', 'default'],
      routes: [{ ...route, path: 'rayapp', layoutInstance: layout }],
    };
  },
};
