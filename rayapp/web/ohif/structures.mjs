/** The structures that can be labelled, those of the server and those that the reader adds, and the active one. */

import { element, fill } from './dom.mjs';
import { colour } from './labelmap.mjs';
import { BACKGROUND } from './meaning.mjs';
import { ADD, LOOKED, UNNAMED, UNSEEN, says } from './words.mjs';

/** @typedef {{volumes: number[], lookedFor: string[]}} Found millilitres of each structure, and those looked for */

export class Structures {
  /**
   * @param {(left: string) => void} changed is called when another structure than `left` becomes active
   * @param {(name: string) => void} added is called with the name of a structure that the reader adds
   * @param {(name: string) => void} looked is called with a structure to mark as looked for, or no longer
   */
  constructor(changed, added, looked) {
    this.changed = changed;
    this.looked = looked;
    /** @type {Found} */
    this.found = { volumes: [], lookedFor: [] };
    /** @type {(() => void)[]} */
    this.rows = []; // each updates one
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
    this.describe(this.found);
  }

  /** @param {string} name */
  #choose(name) {
    const left = this.active;
    this.activate(name);
    this.changed(left);
  }

  /** Show what is there of the structures. @param {Found} found */
  describe(found) {
    this.found = found;
    this.rows.forEach(refresh => refresh());
  }

  /** Make the rows anew, because the structures are others. */
  #draw() {
    const made = this.names.map((name, at) => this.#row(name, at));
    this.rows = made.map(({ refresh }) => refresh);
    fill(this.list, ...made.map(({ node }) => node));
    this.describe(this.found);
  }

  /** A structure's row, and what updates it in place: no click on it is lost. @param {string} name @param {number} at */
  #row(name, at) {
    const style = `--colour: rgb(${colour(at + 1)})`;
    const [onclick, onlook] = [() => this.#choose(name), () => this.looked(name)];
    const choice = element('button', { name: 'label', value: name, className: 'label', style, onclick }, name);
    const volume = element('span', { className: 'volume' });
    const given = { name: 'looked', value: name, onclick: onlook, hidden: name === UNSEEN };
    const mark = element('button', given, LOOKED.text);
    const refresh = () => {
      const looked = this.found.lookedFor.includes(name);
      choice.classList.toggle('on', name === this.active);
      choice.ariaPressed = String(name === this.active);
      volume.textContent = says.volume(this.found.volumes[at] ?? 0);
      mark.ariaPressed = String(looked);
      mark.title = looked ? LOOKED.on(name) : LOOKED.off(name);
    };
    return { node: element('div', { className: 'structure' }, choice, volume, mark), refresh };
  }
}
