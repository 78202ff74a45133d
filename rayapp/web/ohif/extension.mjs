/**
 * Our OHIF extension: the panel, messages for failed requests, and the access token for requests where one is needed.
 */

import { commands } from './commands.mjs';
import * as faults from './faults.mjs';
import { mount } from './panels.mjs';
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

  getCommandsModule: commands,

  /** @param {{servicesManager: ServicesManager}} context */
  getPanelModule({ servicesManager }) {
    const { services } = servicesManager;
    const mounted = (/** @type {HTMLElement|null} */ node) => node && mount(node, services);
    return [
      {
        name: 'rayapp',
        iconName: 'tab-segmentation',
        iconLabel: TITLE,
        label: TITLE,
        component: () => element(mounted),
      },
    ];
  },
};

/**
 * A React element that React only mounts; the panel fills it.
 *
 * @param {(node: HTMLElement|null) => void} ref the same each time, since React calls a new one at each rendering
 */
function element(ref) {
  return {
    $$typeof: Symbol.for('react.element'),
    type: 'div',
    key: null,
    ref,
    props: { style: { height: '100%', overflowY: 'auto' } },
    _owner: null,
    _store: {},
  };
}
