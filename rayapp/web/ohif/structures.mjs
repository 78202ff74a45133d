/** The structures that can be labelled, those of the server and those that the reader adds, and the active one. */

import { element, fill } from './dom.mjs';
import { colour } from './labelmap.mjs';
import { BACKGROUND } from './meaning.mjs';
import { ADD, UNNAMED } from './words.mjs';

export class Structures {
  /**
   * @param {(left: string) => void} changed is called when another structure than `left` becomes active
   * @param {(name: string) => void} added is called with the name of a structure that the reader adds
   */
  constructor(changed, added) {
    this.changed = changed;
    /** @type {string[]} */
    this.names = []; // their segments are counted from 1 in this order
    this.active = '';
    this.list = element('div', { className: 'labels' });
    this.input = element('input', { name: 'structure', placeholder: ADD.text, title: ADD.hint, maxLength: 64 });
    this.input.addEventListener('keydown', ({ key }) => {
      const name = this.input.value.trim();
      if (key === 'Enter' && name && name !== BACKGROUND) {
        this.input.value = '';
        added(name);
        this.#choose(name);
      }
    });
    this.node = element('div', {}, this.list, this.input);
  }

  /**
   * Offer the structures of these models, ordered by label value, and the others that the server names. If there are
   * none, one without a name is offered: any structure can be pointed at.
   *
   * @param {Record<string, import('./server.mjs').Model>} models
   * @param {string[]} labels
   */
  show(models, labels) {
    const known = Object.values(models).flatMap(model => Object.entries(model.labels));
    const names = new Set([...known.sort((a, b) => a[1] - b[1]).map(([name]) => name), ...labels]);
    names.delete(BACKGROUND);
    this.names = names.size ? [...names] : [UNNAMED];
    this.active = this.names[0];
    this.#draw();
  }

  /** Offer one more structure. @param {string} name not among those offered */
  learn(name) {
    this.names.push(name);
    this.#draw();
  }

  /** The segment of the active structure. */
  get segment() {
    return this.names.indexOf(this.active) + 1;
  }

  /** Make a structure active, as it was before. @param {string} name */
  activate(name) {
    this.active = name;
    this.#draw();
  }

  /** @param {string} name */
  #choose(name) {
    const left = this.active;
    this.activate(name);
    this.changed(left);
  }

  #draw() {
    const rows = this.names.map((name, at) => {
      const style = `--colour: rgb(${colour(at + 1)})`;
      const onclick = () => this.#choose(name);
      const row = element('button', { name: 'label', value: name, className: 'label', style, onclick }, name);
      row.classList.toggle('on', name === this.active);
      return row;
    });
    fill(this.list, ...rows);
  }
}
