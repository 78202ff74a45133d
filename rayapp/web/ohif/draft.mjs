/** The draft of one image's labels on the server, to which every change is sent at once. */

import { text, toText } from './mask.mjs';
import { hex } from './random.mjs';
import * as server from './server.mjs';
import * as tab from './tab.mjs';

const FIRST_MS = 500; // before a failed request is repeated; doubles each time
const LONGEST_MS = 10_000;
const BYTES = 2 << 20; // of changes in one request

/** @typedef {() => Promise<object>} Entry the JSON of one change */

export class Draft {
  /** @param {string} image @param {(draft: Draft) => void} changed is called when what is kept has changed */
  constructor(image, changed) {
    this.image = image;
    this.changed = changed;
    this.key = tab.ID + hex(4);
    this.unsaved = false; // true if there is something that was not saved as a label
    this.problem = ''; // why the server does not keep it
    this.begun = false;
    /** @type {Entry[]} */
    this.unsent = [];
    /** @type {Promise<void>|null} */
    this.sending = null;
    this.wait = FIRST_MS;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.timer = undefined;
  }

  /** Go on with a draft of this tab, or with a copy of that of another. @param {import('./history.mjs').Kept} kept */
  resume(kept) {
    this.unsaved = true;
    this.begun = true;
    if (kept.draft.startsWith(tab.ID)) {
      this.key = kept.draft;
    } else {
      this.#put('begin', async () => ({ source: kept.draft }));
    }
  }

  /**
   * Begin with a label, unless there is a beginning.
   *
   * @param {number} base number of its revision, 0 for none
   * @param {string[]} names
   * @param {number[]} shape
   * @param {Labels} labels
   */
  begin(base, names, shape, labels) {
    if (!this.begun) {
      this.begun = true;
      const given = [...names];
      this.#put('begin', async () => ({ base, names: given, labels: await toText(shape, labels) }));
    }
  }

  /** @param {import('./history.mjs').Edit} edit @param {string[]} names @param {number} base as of `begin` */
  edit({ request, labels, strokes, about }, names, base) {
    const given = [...names];
    const packed = async (/** @type {import('./history.mjs').Change|null} */ change) =>
      change ? text(await change.after) : '';
    this.unsaved = true;
    this.#put('edit', async () => ({
      request,
      base,
      names: given,
      about,
      labels: await packed(labels),
      strokes: await packed(strokes),
    }));
  }

  /** @param {'undo'|'redo'} kind */
  turn(kind) {
    this.unsaved = true;
    this.#put(kind, async () => ({}));
  }

  /** The label was saved. @param {number} base number of its revision */
  saved(base) {
    this.unsaved = false;
    if (this.begun) {
      this.#put('saved', async () => ({ base }));
    }
    this.changed(this);
  }

  /** Wait until everything is sent. Throws what keeps it from the server. */
  async flush() {
    this.sending ??= this.#run();
    await this.sending;
    if (this.unsent.length) {
      throw new Error(this.problem);
    }
  }

  /** @param {string} kind @param {Entry} given */
  #put(kind, given) {
    const request = hex(8);
    this.unsent.push(async () => ({ request, kind, ...(await given()) }));
    this.changed(this);
    this.sending ??= this.#run();
  }

  async #run() {
    clearTimeout(this.timer);
    while (this.unsent.length) {
      await this.#send();
      if (this.problem) {
        this.timer = setTimeout(() => (this.sending ??= this.#run()), this.wait);
        this.wait = Math.min(2 * this.wait, LONGEST_MS);
        break;
      }
      this.wait = FIRST_MS;
    }
    this.sending = null;
  }

  /** Send what is not sent yet, as far as it fits into one request. */
  async #send() {
    try {
      const entries = [];
      for (let bytes = 0; bytes < BYTES && entries.length < Math.min(this.unsent.length, 500); ) {
        const entry = await this.unsent[entries.length]();
        entries.push(entry);
        bytes += JSON.stringify(entry).length;
      }
      await server.keepDraft(this.image, this.key, entries);
      this.unsent.splice(0, entries.length);
      this.problem = '';
    } catch (error) {
      this.problem = server.reason(error);
    }
    this.changed(this);
  }
}
