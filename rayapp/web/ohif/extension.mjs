/** Our extension of OHIF: one panel, words for what goes wrong, and the key that requests carry where one is asked for. */

import * as faults from './faults.mjs';
import { Panel } from './panel.mjs';
import { keys } from './server.mjs';

export default {
  id: 'rayapp',

  preRegistration({ servicesManager, appConfig }) {
    faults.watch(appConfig, servicesManager.services);
    if (!keys.needed()) {
      return;
    }
    if (!keys.get()) {
      keys.set(window.prompt('Your key for this server (rayapp users add …):')?.trim() ?? '');
    }
    servicesManager.services.userAuthenticationService.setServiceImplementation({
      getAuthorizationHeader: keys.header,
    });
  },

  getPanelModule({ servicesManager }) {
    return [
      {
        name: 'rayapp',
        iconName: 'tab-segmentation',
        iconLabel: 'rayapp',
        label: 'rayapp',
        component: () => element(servicesManager.services),
      },
    ];
  },
};

let panel = null;

/** The panel as a React element; what is in it is none of React's. */
function element(services) {
  return {
    $$typeof: Symbol.for('react.element'),
    type: 'div',
    key: null,
    ref: mount,
    props: { className: 'rayapp', style: { height: '100%', overflowY: 'auto' } },
    _owner: null,
    _store: {},
  };

  function mount(node) {
    if (node && panel?.node !== node) {
      panel?.close();
      panel = new Panel(node, services);
    } else if (!node) {
      panel?.close();
      panel = null;
    }
  }
}
