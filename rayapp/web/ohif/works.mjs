/** The works of this page, one for each series: they outlive the panel, its tab and the viewer's layouts. */

import { DONE } from './words.mjs';
import { Work } from './work.mjs';

export class Works {
  constructor() {
    /** @type {Map<string, Work>} */
    this.all = new Map(); // by series
    this.changed = () => {};
    window.addEventListener('beforeunload', event => {
      this.observe();
      if (this.unsent) {
        event.preventDefault(); // the browser asks
      }
    });
  }

  /** True if the server does not have all changes yet. */
  get unsent() {
    return [...this.all.values()].some(({ draft }) => draft.unsent.length > 0);
  }

  /**
   * The work on the series that is shown, opened or as it was left, and what to say of it.
   *
   * @param {Services} services
   * @param {DisplaySet} shown
   * @param {import('./work.mjs').Known} known
   * @returns {Promise<{work: Work, text: string}>}
   */
  async open(services, shown, known) {
    const held = this.all.get(shown.SeriesInstanceUID);
    if (held) {
      await held.show(shown);
      return { work: held, text: DONE.asLeft };
    }
    const opened = await Work.open(services, shown, known, () => this.changed());
    this.all.set(shown.SeriesInstanceUID, opened.work);
    return opened;
  }

  /** The work whose labels are in this segmentation. @param {string} segmentationId */
  of(segmentationId) {
    return [...this.all.values()].find(({ labelmap }) => labelmap.id === segmentationId);
  }

  /** Take over what was painted by hand, wherever it still can be seen. */
  observe() {
    [...this.all.values()].filter(({ labelmap }) => labelmap.there).forEach(work => work.observe());
  }

  /** Wait until the server has all changes. Throws what keeps them from it. */
  async flush() {
    this.observe();
    await Promise.all([...this.all.values()].map(({ draft }) => draft.flush()));
  }

  /** The viewer is left for the list of studies: forget what the server has. */
  leave() {
    this.observe();
    this.all.forEach(work => work.hide());
    for (const [series, { draft }] of this.all) {
      if (!draft.unsent.length) {
        this.all.delete(series);
      }
    }
  }
}

export const works = new Works();
