/** The next image, and the reason why it was chosen, which is shown once it is open. */

import { button, element, fill, options } from './dom.mjs';
import * as server from './server.mjs';
import { DOING, DONE, SECTIONS, says } from './words.mjs';

const REASON = 'rayapp-reason';

/**
 * @typedef {(doing: string, act: () => Promise<string|null|undefined>) => void} Run runs one action of the panel at a time
 */

export class Next {
  /** @param {Run} run @param {() => Promise<void>} kept waits until the server has all work on this page */
  constructor(run, kept) {
    this.kept = kept;
    /** @type {Record<string, {description: string}>} */
    this.strategies = {};
    this.strategy = element('select', { name: 'strategy' });
    this.node = element('div', {});
    fill(
      this.node,
      element('h3', {}, SECTIONS.next),
      this.strategy,
      button('next', () => run(DOING.choosing, () => this.#go()))
    );
  }

  /** Offer these strategies. @param {Record<string, {description: string}>} strategies */
  show(strategies) {
    this.strategies = strategies;
    options(this.strategy, Object.keys(strategies));
  }

  /** Why this image was chosen; "" if it was opened otherwise. @param {string} image @returns {string} */
  reason(image) {
    const { id, why } = JSON.parse(sessionStorage.getItem(REASON) ?? '{}');
    return id === image ? why : '';
  }

  async #go() {
    const strategy = this.strategy.value;
    const sample = await server.next(strategy, { client_id: server.CLIENT });
    if (!sample.id) {
      return DONE.allLabelled;
    }
    const numbers = Object.entries(sample).flatMap(([name, value]) =>
      typeof value === 'number' && name !== 'ts' ? [/** @type {[string, number]} */ ([name, value])] : []
    );
    const why = says.reason(strategy, this.strategies[strategy].description, numbers);
    sessionStorage.setItem(REASON, JSON.stringify({ id: sample.id, why }));
    const { study } = await server.image(sample.id);
    await this.kept();
    const to = new URL('rayapp', new URL(window.config.routerBasename, window.location.origin));
    to.searchParams.set('StudyInstanceUIDs', study);
    window.location.assign(to);
    return says.chosen(sample.id, strategy);
  }
}
