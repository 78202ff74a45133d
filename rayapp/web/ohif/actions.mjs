/** The panel's actions, carried out one after the other, and what it says of them. */

import { element } from './dom.mjs';
import * as server from './server.mjs';

/** @typedef {'doing'|'done'|'waiting'|'wrong'} State */

export class Actions {
  /**
   * @param {HTMLElement} node of the panel, whose buttons wait for the action in progress
   * @param {() => State} settled the state after an action that went well
   * @param {() => void} over is called after each action
   */
  constructor(node, settled, over) {
    this.node = node;
    this.settled = settled;
    this.over = over;
    this.status = element('div', { className: 'status', role: 'status' });
    this.queue = Promise.resolve();
    this.waiting = 0; // actions begun or queued
    this.turn = 0; // actions that are over
  }

  /**
   * Run an action after those before it, and show what came of it.
   *
   * @param {string} doing
   * @param {() => Promise<string|null|undefined>} act
   */
  run(doing, act) {
    this.waiting += 1;
    this.queue = this.queue.then(async () => {
      this.show(doing, 'doing');
      this.#enable(false);
      try {
        const text = await act();
        this.show(text ?? '', this.settled());
      } catch (error) {
        this.show(server.reason(error), 'wrong');
      }
      this.waiting -= 1;
      this.turn += 1;
      this.status.dataset.turn = String(this.turn);
      this.#enable(true);
      this.over();
    });
  }

  /** Say that a better mask is on its way, for which the next action need not wait. @param {string} text */
  refining(text) {
    this.show(text, 'doing');
    this.#enable(true);
  }

  /** @param {string} text @param {State} state */
  show(text, state) {
    this.status.textContent = text;
    this.status.dataset.state = state;
  }

  /** @param {boolean} on */
  #enable(on) {
    this.node.querySelectorAll('button').forEach(one => (one.disabled = !on));
  }
}
