/**
 * Our OHIF extension: the panel, messages for failed requests, and the access token for requests where one is needed.
 */

import * as faults from './faults.mjs';
import { Panel } from './panel.mjs';
import { keys } from './server.mjs';
import { KEY_PROMPT, TITLE } from './words.mjs';

export default {
  id: 'rayapp',

  /** @param {{servicesManager: ServicesManager, appConfig: AppConfig}} context */
  preRegistration({ servicesManager, appConfig }) {
    faults.watch(appConfig, servicesManager.services);
    if (!keys.needed()) {
      return;
    }
    if (!keys.get()) {
      keys.set(window.prompt(KEY_PROMPT)?.trim() ?? '');
    }
    servicesManager.services.userAuthenticationService.setServiceImplementation({
      getAuthorizationHeader: keys.header,
    });
  },

  /** @param {{servicesManager: ServicesManager}} context */
  getPanelModule({ servicesManager }) {
    return [
      {
        name: 'rayapp',
        iconName: 'tab-segmentation',
        iconLabel: TITLE,
        label: TITLE,
        component: () => element(servicesManager.services),
      },
    ];
  },
};

/** @type {Panel|null} */
let panel = null;

/** A React element that React only mounts; the panel fills it. @param {Services} services */
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

  /** @param {HTMLElement|null} node */
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
