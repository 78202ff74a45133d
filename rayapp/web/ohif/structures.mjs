/** The structures that the server's models know, and the one that is worked on. */

import { element, fill } from './dom.mjs';
import { colour } from './labelmap.mjs';
import { BACKGROUND } from './work.mjs';

export class Structures {
  /** @param {() => void} chosen is called when another one is worked on */
  constructor(chosen) {
    this.chosen = chosen;
    this.names = [];
    this.active = '';
    this.node = element('div', { className: 'labels' });
  }

  /** Those of these models, in the order of their values. */
  show(models) {
    const known = Object.values(models).flatMap(model => Object.entries(model.labels));
    const values = new Map(known.sort((a, b) => a[1] - b[1]).filter(([name]) => name !== BACKGROUND));
    this.names = [...values.keys()];
    this.active = this.names[0];
    this.#draw();
  }

  /** The segment that stands for it. */
  get segment() {
    return this.names.indexOf(this.active) + 1;
  }

  #choose(name) {
    this.active = name;
    this.#draw();
    this.chosen();
  }

  #draw() {
    const rows = this.names.map((name, at) =>
      element(
        'button',
        {
          name: 'label',
          value: name,
          className: name === this.active ? 'label on' : 'label',
          style: `--colour: rgb(${colour(at + 1)})`,
          onclick: () => this.#choose(name),
        },
        name
      )
    );
    fill(this.node, ...rows);
  }
}
