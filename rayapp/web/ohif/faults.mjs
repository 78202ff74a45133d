/** What goes wrong with OHIF's own requests for studies and images, of which it says little or nothing itself. */

import * as server from './server.mjs';

const SHOWN = 30_000; // ms, in which OHIF does not show the same again

/** Tell it, wherever in OHIF one is. */
export function watch(appConfig, { uiNotificationService }) {
  const tell = message =>
    uiNotificationService.show({ title: 'rayapp', message, type: 'error', duration: SHOWN, position: 'bottom-left' });
  appConfig.httpErrorHandler = ({ status, response }) => {
    if (status) {
      tell(detail(response) ?? `${source()} answers with status ${status}`);
    } else {
      server.studies().catch(error => tell(error.message)); // no answer: there is none, or none was waited for
    }
  };
}

const source = () => (window.config.rayapp.archive ? 'the DICOM archive' : 'the server');

/** The server's words, if these are some. */
function detail(response) {
  try {
    return (response instanceof ArrayBuffer ? JSON.parse(new TextDecoder().decode(response)) : response).detail ?? null;
  } catch {
    return null;
  }
}
