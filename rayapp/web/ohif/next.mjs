/** The next image, and why it was chosen, which is told when it is open. */

import { element, fill, options } from './dom.mjs';
import * as server from './server.mjs';

const REASON = 'rayapp-reason';

export class Next {
  /** @param run what does one thing of the panel's at a time */
  constructor(run) {
    this.strategies = {};
    this.strategy = element('select', { name: 'strategy' });
    this.node = element('div', {});
    const act = () => run('choosing…', () => this.#go());
    fill(
      this.node,
      element('h3', {}, 'Next image'),
      this.strategy,
      element('button', { name: 'next', title: 'Shift+N', onclick: act }, 'Next')
    );
  }

  /** Offer these strategies. */
  show(strategies) {
    this.strategies = strategies;
    options(this.strategy, Object.keys(strategies));
  }

  /** Why this image was chosen; "" if it was not. */
  reason(image) {
    const { id, why } = JSON.parse(sessionStorage.getItem(REASON) ?? '{}');
    return id === image ? why : '';
  }

  async #go() {
    const strategy = this.strategy.value;
    const sample = await server.next(strategy, { client_id: server.CLIENT });
    if (!sample.id) {
      return 'every image is labelled';
    }
    const numbers = Object.entries(sample).filter(([name, value]) => typeof value === 'number' && name !== 'ts');
    const told = numbers.map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`).join(', ');
    const why = `${strategy}: ${this.strategies[strategy].description}${told ? ` (${told})` : ''}`;
    sessionStorage.setItem(REASON, JSON.stringify({ id: sample.id, why }));
    const { study } = await server.image(sample.id);
    const to = new URL('rayapp', new URL(window.config.routerBasename, window.location.origin));
    to.searchParams.set('StudyInstanceUIDs', study);
    window.location.assign(to);
    return `${sample.id}, chosen by ${strategy}`;
  }
}
