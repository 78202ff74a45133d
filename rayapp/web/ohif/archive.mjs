/** Whether the DICOM archive has what was saved: it is stored there soon after, or when the archive is back. */

import { element } from './dom.mjs';
import * as server from './server.mjs';

const SOON = 500; // ms between looks, ever longer
const LONGEST = 30_000;

export class Archive {
  constructor() {
    this.node = element('div', { className: 'archived', role: 'status' });
    this.following = null;
  }

  close() {
    clearTimeout(this.following);
  }

  /** Tell what becomes of the label that was saved last, until the archive has it; beside all else. */
  follow(image) {
    this.close();
    this.#tell('', '');
    if (window.config.rayapp.archive) {
      this.#look(image, SOON);
    }
  }

  async #look(image, wait) {
    const info = await server.labelInfo(image, 'final').catch(() => ({}));
    if (info.archive_problem) {
      this.#tell('refused', `kept here, but the archive cannot have it: ${info.archive_problem}`);
    } else if (info.archived) {
      this.#tell('there', 'in the archive as DICOM SEG');
    } else {
      this.#tell('waiting', 'kept here; it waits for the archive');
      this.following = setTimeout(() => this.#look(image, Math.min(2 * wait, LONGEST)), wait);
    }
  }

  #tell(state, text) {
    this.node.dataset.state = state;
    this.node.textContent = text;
  }
}
