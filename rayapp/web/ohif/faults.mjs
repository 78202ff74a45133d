/** What goes wrong with OHIF's own requests for studies and images, of which it says little or nothing itself. */

import * as server from './server.mjs';

const SHOWN = 30_000; // ms, in which OHIF does not show the same again
const MEANT = { 502: 'does not answer, or broke off', 504: 'did not answer in time' }; // by our own server

/** Tell it, wherever in OHIF one is. */
export function watch(appConfig, { uiNotificationService }) {
  const tell = message =>
    uiNotificationService.show({ title: 'rayapp', message, type: 'error', duration: SHOWN, position: 'bottom-center' });
  appConfig.httpErrorHandler = error => {
    // A request, an error with its answer or with a text that names the status, or any text.
    const status = error?.status || Number(/status (\d{3})/.exec(error?.message ?? error)?.[1] ?? 0);
    if (status) {
      tell(detail(error.response) ?? `${source()} ${MEANT[status] ?? `answers with status ${status}`}`);
    } else {
      server.studies().catch(({ message }) => tell(message)); // no answer: there is none, or none was waited for
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
