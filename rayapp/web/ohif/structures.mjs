/** The structures that the server's models know, and the active one. */

import { element, fill } from './dom.mjs';
import { colour } from './labelmap.mjs';
import { BACKGROUND } from './work.mjs';

export class Structures {
  /** @param {() => void} changed is called when another structure becomes active */
  constructor(changed) {
    this.changed = changed;
    /** @type {string[]} */
    this.names = [];
    this.active = '';
    this.node = element('div', { className: 'labels' });
  }

  /**
   * Offer the structures of these models, ordered by label value.
   *
   * @param {Record<string, import('./server.mjs').Model>} models
   */
  show(models) {
    const known = Object.values(models).flatMap(model => Object.entries(model.labels));
    const values = new Map(known.sort((a, b) => a[1] - b[1]).filter(([name]) => name !== BACKGROUND));
    this.names = [...values.keys()];
    this.active = this.names[0];
    this.#draw();
  }

  /** The segment of the active structure. */
  get segment() {
    return this.names.indexOf(this.active) + 1;
  }

  /** @param {string} name */
  #choose(name) {
    this.active = name;
    this.#draw();
    this.changed();
  }

  #draw() {
    const rows = this.names.map((name, at) => {
      const style = `--colour: rgb(${colour(at + 1)})`;
      const onclick = () => this.#choose(name);
      const row = element('button', { name: 'label', value: name, className: 'label', style, onclick }, name);
      row.classList.toggle('on', name === this.active);
      return row;
    });
    fill(this.node, ...rows);
  }
}
