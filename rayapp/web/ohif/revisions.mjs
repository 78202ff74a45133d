/** The saved states of the label: looked at, started from, and chosen between when somebody else saved meanwhile. */

import { button, element, fill } from './dom.mjs';
import { History } from './history.mjs';
import { Labelmap } from './labelmap.mjs';
import { translation } from './meaning.mjs';
import * as server from './server.mjs';
import { DOING, DONE, PROBLEMS, SECTIONS, says } from './words.mjs';

/** @typedef {import('./work.mjs').Work} Work */

const DRAFT = 'draft'; // the choice of unsaved work that was made from an older revision
const TAG = 'tag '; // before the tag of a label that is not final

export class Revisions {
  /**
   * @param {import('./next.mjs').Run} run
   * @param {() => Work} work gives the panel's
   * @param {() => void} drawn is called when a revision is shown, which is not to be painted in
   */
  constructor(run, work, drawn) {
    this.work = work;
    this.drawn = drawn;
    /** @type {Labelmap|null} */
    this.shown = null;
    this.theirs = 0; // number of the revision that somebody else saved meanwhile
    this.choice = element('select', { name: 'revision' });
    this.conflict = element(
      'div',
      { className: 'conflict', hidden: true },
      button('keep-mine', () => run(DOING.saving, () => this.#keepMine())),
      button('keep-theirs', () => run(DOING.opening, () => this.#keepTheirs())),
      button('start-theirs', () => run(DOING.opening, () => this.#start(String(this.theirs))))
    );
    this.node = element('div', {});
    fill(
      this.node,
      this.conflict,
      element('h3', {}, SECTIONS.revisions),
      this.choice,
      button('look', () => run(DOING.opening, () => this.#look())),
      button('restore', () => run(DOING.opening, () => this.#restore()))
    );
  }

  /** List the saved states of the work's label. @param {Work} work */
  async show(work) {
    this.hide();
    this.#settle(0);
    await this.#list(work);
  }

  /** @param {Work} work */
  async #list(work) {
    const saved = await server.revisions(work.image.image, 'final');
    const listed = saved.map(({ number, ts, user }) => new Option(says.revision(number, ts, user), String(number)));
    const draft = work.older ? [new Option(says.olderDraft(work.older.ts), DRAFT)] : [];
    const others = work.image.labels.filter(tag => tag !== 'final');
    const tagged = others.map(tag => new Option(says.tagged(tag), TAG + tag));
    this.choice.replaceChildren(...draft, ...listed.toReversed(), ...tagged);
    this.choice.disabled = !this.choice.options.length;
  }

  /** Take the revision that is looked at off the screen. */
  hide() {
    this.shown?.remove();
    this.shown = null;
  }

  /** Save the panel's work; if somebody else saved meanwhile, offer a choice. @returns {Promise<string>} */
  async save() {
    const work = this.work();
    try {
      const text = await work.save();
      this.#settle(0);
      await this.#list(work);
      return text;
    } catch (error) {
      if (error instanceof server.Refused && error.status === 409) {
        const { labels } = await server.image(work.image.image);
        if (!labels.includes('final')) {
          work.base = 0; // theirs was deleted: there is nothing to choose
          return this.save();
        }
        this.#settle((await work.stored()).number);
        await this.#list(work);
        throw new Error(says.conflict(error.message));
      }
      throw error;
    }
  }

  /** @param {number} theirs number of a revision to choose about, 0 for none */
  #settle(theirs) {
    this.theirs = theirs;
    this.conflict.hidden = !theirs;
    this.choice.value = theirs ? String(theirs) : this.choice.value;
  }

  async #keepMine() {
    const work = this.work();
    work.base = this.theirs;
    return this.save();
  }

  async #keepTheirs() {
    const work = this.work();
    const text = await this.#start(String(this.theirs));
    work.draft.saved(work.base);
    return text;
  }

  /** @param {string} choice of the label to go on from */
  async #start(choice) {
    const work = this.work();
    const chosen = await this.#chosen(work, choice);
    if (this.theirs) {
      work.base = this.theirs;
    }
    await work.replace(chosen);
    this.hide();
    this.#settle(0);
    return DONE.restored;
  }

  async #restore() {
    const work = this.work();
    const text = await this.#start(this.choice.value);
    if (this.choice.value === DRAFT) {
      await work.takeOver();
      await this.#list(work);
    }
    return text;
  }

  /** Show the chosen state beside the work, in colours of its own; or take it away again. */
  async #look() {
    const work = this.work();
    if (this.shown) {
      this.hide();
      return DONE.revisionHidden;
    }
    const { labels } = await this.#chosen(work, this.choice.value);
    const { services, displaySet, segments } = work.labelmap;
    const inverted = segments.map(({ value, label, colour: [r, g, b] }) => {
      /** @type {Colour} */
      const colour = [255 - r, 255 - g, 255 - b];
      return { value, label, colour };
    });
    const other = new Labelmap(services, displaySet, work.image, inverted, 'revision');
    await other.ready();
    other.write(labels);
    this.shown = other;
    this.drawn();
    return DONE.revisionShown;
  }

  /**
   * The label that is chosen.
   *
   * @param {Work} work
   * @param {string} choice
   * @returns {Promise<{labels: Labels, sought: string[]}>}
   */
  async #chosen(work, choice) {
    if (choice.startsWith(TAG)) {
      return work.stored(choice.slice(TAG.length));
    }
    if (choice !== DRAFT && choice) {
      return work.stored('final', Number(choice));
    }
    if (!choice || !work.older) {
      throw new Error(PROBLEMS.noRevision);
    }
    work.older.names.forEach(name => work.learn(name));
    const { labels } = await History.of(work.image.shape, work.older, translation(work.older.names, work.names));
    return { labels, sought: [] };
  }
}
