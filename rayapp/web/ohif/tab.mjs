/**
 * The id of this browser tab, which stays the same when its page is loaded again.
 *
 * While a page lives, only the page knows its id: a duplicate of the tab, which gets a copy of the session storage, gets
 * an id of its own.
 */

import { hex } from './random.mjs';

const KEY = 'rayapp-tab';

export const ID = sessionStorage.getItem(KEY) ?? hex(8);
sessionStorage.removeItem(KEY);
window.addEventListener('pagehide', () => sessionStorage.setItem(KEY, ID));
