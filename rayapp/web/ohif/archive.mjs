/** The state of the saved label in the DICOM archive: it is stored there soon after, or once the archive is back. */

import { element } from './dom.mjs';
import * as server from './server.mjs';
import { ARCHIVE } from './words.mjs';

const FIRST_MS = 500; // between two requests; doubles each time
const LONGEST_MS = 30_000;

export class Archive {
  constructor() {
    this.node = element('div', { className: 'archived', role: 'status' });
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.timer = undefined;
  }

  close() {
    clearTimeout(this.timer);
  }

  /** Show the state of the image's final label until the archive has it. @param {string} image */
  follow(image) {
    this.close();
    this.#show('', '');
    if (window.config.rayapp.archive) {
      this.#look(image, FIRST_MS);
    }
  }

  /** Say, before any work, that the archive can hold no label of the image. @param {string} reason '' if it can */
  warn(reason) {
    this.close();
    this.#show(reason ? 'refused' : '', reason ? ARCHIVE.impossible(reason) : '');
  }

  /** @param {string} image @param {number} wait ms */
  async #look(image, wait) {
    const info = await server.labelInfo(image, 'final').catch(() => /** @type {server.LabelInfo} */ ({}));
    if (info.archive_problem) {
      this.#show('refused', ARCHIVE.refused(info.archive_problem));
    } else if (info.archived) {
      this.#show('there', ARCHIVE.there);
    } else {
      this.#show('waiting', info.archive_waiting ? ARCHIVE.delayed(info.archive_waiting) : ARCHIVE.waiting);
      this.timer = setTimeout(() => this.#look(image, Math.min(2 * wait, LONGEST_MS)), wait);
    }
  }

  /** @param {string} state @param {string} text */
  #show(state, text) {
    this.node.dataset.state = state;
    this.node.textContent = text;
  }
}
