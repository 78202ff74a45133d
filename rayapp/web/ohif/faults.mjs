/** Messages for failures of OHIF's own requests for studies and images, which it reports poorly or not at all. */

import * as server from './server.mjs';
import { REQUESTS, TITLE } from './words.mjs';

const SHOWN_MS = 30_000; // OHIF does not repeat a message that is still shown

/**
 * Show a message for each failure, wherever in OHIF the user is.
 *
 * @param {AppConfig} appConfig
 * @param {Services} services
 */
export function watch(appConfig, { uiNotificationService }) {
  const tell = (/** @type {string} */ message) =>
    uiNotificationService.show({ title: TITLE, message, type: 'error', duration: SHOWN_MS, position: 'bottom-center' });
  appConfig.httpErrorHandler = error => {
    // A request, an error with its answer or with a text that names the status, or only a text.
    const failed = typeof error === 'string' ? { message: error } : error;
    const status = failed?.status || Number(/status (\d{3})/.exec(failed?.message ?? '')?.[1] ?? 0);
    if (status) {
      tell(detail(failed.response) ?? REQUESTS.failed(source(), status));
    } else {
      server.studies().catch(({ message }) => tell(message)); // no answer at all: ask why
    }
  };
}

const source = () => (window.config.rayapp.archive ? REQUESTS.archive : REQUESTS.server);

/** The reason that the server gives, if it gives one. @param {unknown} response @returns {string|null} */
function detail(response) {
  try {
    const body = response instanceof ArrayBuffer ? JSON.parse(new TextDecoder().decode(response)) : response;
    return body.detail ?? null;
  } catch {
    return null;
  }
}
