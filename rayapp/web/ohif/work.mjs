/** The work on one image: its labels on the screen, what was done to them and can be undone, and saving them. */

import { Dots } from './dots.mjs';
import { Draft } from './draft.mjs';
import { History } from './history.mjs';
import { Labelmap, colour } from './labelmap.mjs';
import { changed } from './mask.mjs';
import { BACKGROUND, translation } from './meaning.mjs';
import { Prompter } from './prompter.mjs';
import { hex } from './random.mjs';
import * as server from './server.mjs';
import { stored, unnamed } from './stored.mjs';
import * as strokes from './strokes.mjs';
import { DONE, UNSEEN, says } from './words.mjs';

/**
 * @typedef {import('./history.mjs').About} About
 * @typedef {import('./history.mjs').Edit} Edit
 * @typedef {{names: string[], models: Record<string, server.Model>, learn: (name: string) => void}} Known the
 *   structures that are offered, the server's models, and how to offer one more
 */

const FINAL = 'final';
const ORIGINAL = 'original'; // of others' segmentations in an archive

export class Work {
  /**
   * Open a series that the viewer shows.
   *
   * @param {Services} services
   * @param {DisplaySet} shown
   * @param {Known} known
   * @param {(work: Work) => void} kept is called when what the server keeps of it has changed
   */
  static async open(services, shown, known, kept) {
    const work = new Work(services, shown, await server.imageOfSeries(shown.SeriesInstanceUID), known, kept);
    const text = await work.begin();
    return { work, text };
  }

  /**
   * @param {Services} services
   * @param {DisplaySet} shown
   * @param {import('./labelmap.mjs').Image} image
   * @param {Known} known
   * @param {(work: Work) => void} kept
   */
  constructor(services, shown, image, { names, models, learn }, kept) {
    this.services = services;
    this.image = image;
    this.names = names;
    this.offer = learn;
    this.labelmap = this.#labelmap(shown);
    this.history = new History(image.shape, new Uint8Array(this.labelmap.size));
    /** @type {Labels} */
    this.screen = this.history.labels; // as it was written or read last
    this.drawn = ''; // id of the segmentation that shows it
    this.base = 0; // number of the saved revision that it is made from
    this.draft = new Draft(image.image, () => kept(this));
    /** @type {import('./history.mjs').Kept|null} */
    this.older = null; // unsaved work that was made from an older revision
    /** @type {string[]} */
    this.sought = []; // structures that the annotator of the saved label looked for
    this.dots = new Dots();
    /** @type {number[]|null} */
    this.box = null; // that limits points and strokes
    this.prompter = new Prompter(this, models);
  }

  /** @param {DisplaySet} shown */
  #labelmap(shown) {
    const segments = this.names.map((label, at) => segmentOf(label, at + 1));
    return new Labelmap(this.services, shown, this.image, segments, 'label', strokes.SEGMENTS);
  }

  /** Know a structure from now on. @param {string} name */
  learn(name) {
    if (!this.names.includes(name)) {
      this.offer(name);
      this.labelmap.add(segmentOf(name, this.names.length));
    }
  }

  /** Show the saved label, or the draft that was made from it. Returns what to say of it. */
  async begin() {
    const { image, labels, shape } = this.image;
    const others = labels.filter(tag => tag !== FINAL);
    const tag = labels.includes(FINAL) ? FINAL : others.includes(ORIGINAL) ? ORIGINAL : others.at(0);
    const start = tag === undefined ? null : await this.stored(tag);
    this.base = tag === FINAL ? (start?.number ?? 0) : 0;
    this.sought = start?.sought ?? [];
    this.history = new History(shape, start?.labels ?? this.history.labels);
    const kept = await server.draft(image);
    const current = kept?.base === this.base;
    this.older = current ? null : kept;
    if (kept && current) {
      await this.#resume(kept);
    }
    await this.#draw();
    this.#point();
    if (kept) {
      return current ? DONE.resumed : DONE.older;
    }
    return tag === undefined ? DONE.fresh : tag === FINAL ? DONE.saved : says.begun(tag);
  }

  /**
   * A label of the image that the server has.
   *
   * @param {string} [tag]
   * @param {number} [revision] number of an earlier one; the newest by default
   */
  stored(tag = FINAL, revision = undefined) {
    return stored(this.image, this.names, name => this.learn(name), tag, revision);
  }

  /** @param {import('./history.mjs').Kept} kept */
  async #resume(kept) {
    kept.names.forEach(name => this.learn(name));
    const values = translation(kept.names, this.names);
    this.history = await History.of(this.image.shape, kept, values);
    const last = this.history.done.at(-1)?.about;
    this.box = last?.box ?? null;
    if (values) {
      this.draft.begin(this.base, this.names, this.image.shape, this.history.labels);
      this.draft.unsaved = true;
    } else {
      this.draft.resume(kept);
      if (this.draft.key === kept.draft) {
        this.prompter.resume();
      }
    }
  }

  /** Show it in a display set of the viewer that was made since, with its points. @param {DisplaySet} shown */
  async show(shown) {
    if (this.labelmap.displaySet !== shown) {
      this.labelmap = this.#labelmap(shown);
    }
    await this.labelmap.ready();
    if (this.labelmap.id !== this.drawn) {
      await this.#draw();
    }
    this.#point();
  }

  /** Take its points off the screen, because another series is shown. */
  hide() {
    this.dots.hide();
  }

  #point() {
    this.dots.draw(this.history, this.labelmap, (name, label) => this.#colour(name, label));
  }

  async #draw() {
    await this.labelmap.ready();
    this.observe(); // what was painted in the meantime
    this.#write(strokes.over(this.history.labels, this.history.strokes));
  }

  /** @param {Labels} screen */
  #write(screen) {
    this.labelmap.write(screen);
    [this.screen, this.drawn] = [screen, this.labelmap.id];
  }

  /**
   * Take over what was painted by hand.
   *
   * @param {string} group of the edit: one movement of the brush is undone at once
   */
  observe(group = hex(4)) {
    const screen = this.labelmap.get();
    const before = this.labelmap.id === this.drawn ? this.screen : new Uint8Array(screen.length); // a new one is empty
    if (changed(before, screen, this.image.shape)) {
      const { labels, strokes: drawn } = strokes.split(before, screen, this.history.labels, this.history.strokes);
      [this.screen, this.drawn] = [screen, this.labelmap.id];
      this.#add(labels, drawn, { group });
    }
  }

  /** @param {Labels} labels @param {Labels} drawn @param {About} about */
  #add(labels, drawn, about, always = false) {
    const before = this.history.labels;
    const edit = this.history.add(labels, drawn, { ...about, box: this.box }, always);
    if (edit) {
      this.draft.begin(this.base, this.names, this.image.shape, before);
      this.draft.edit(edit, this.names, this.base);
    }
    return edit;
  }

  /**
   * Add an edit that the panel makes, and show it.
   *
   * @param {Labels} labels
   * @param {About} about
   * @param {Labels} drawn
   */
  async edit(labels, about, drawn = this.history.strokes) {
    const edit = this.#add(labels, drawn, about, true);
    await this.#draw();
    return edit;
  }

  /** Marks are for another structure from now on: drop the box and the strokes. @param {string} left the one before */
  async leave(left) {
    this.observe();
    this.box = null;
    if (this.history.drawn) {
      await this.edit(this.history.labels, { group: hex(4), left }, new Uint8Array(this.labelmap.size));
    }
  }

  /** Show a stored label instead, which can be undone. @param {{labels: Labels, sought: string[]}} stored */
  async replace({ labels, sought }) {
    this.observe();
    await this.edit(labels, { group: hex(4), looked: Object.fromEntries(sought.map(name => [name, true])) });
  }

  /** The structures that the reader looked for: those that are there, prompted or marked as looked for. */
  get lookedFor() {
    const { names, sought, history } = this;
    const looked = new Set(names.length === 1 ? names : sought);
    for (const { about } of history.done) {
      if (about.model && about.label) {
        looked.add(about.label);
      }
      Object.entries(about.looked ?? {}).forEach(([name, yes]) => (yes ? looked.add(name) : looked.delete(name)));
    }
    return names.filter((name, at) => name !== UNSEEN && (looked.has(name) || history.counts[at + 1] > 0));
  }

  /** Mark a structure as looked for, though it is not there; or take the mark away. @param {string} name */
  async look(name) {
    this.observe();
    const looked = !this.lookedFor.includes(name);
    await this.edit(this.history.labels, { group: hex(4), looked: { [name]: looked } });
    return looked ? says.looked(name) : says.notLooked(name);
  }

  /** Millilitres of each structure. */
  get volumes() {
    const [a, b, c] = [0, 1, 2].map(row => this.image.affine[row].slice(0, 3));
    const cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    const voxel = Math.abs(cross[0] * c[0] + cross[1] * c[1] + cross[2] * c[2]) / 1000;
    return this.names.map((_, at) => this.history.counts[at + 1] * voxel);
  }

  /** The older unsaved work was taken into this one: the server need not offer it again. */
  async takeOver() {
    await this.draft.flush();
    if (this.older) {
      await server.keepDraft(this.image.image, this.older.draft, [{ request: hex(8), kind: 'saved', base: this.base }]);
      this.older = null;
    }
  }

  /**
   * Undo or redo the last edit.
   *
   * @param {'undo'|'redo'} kind
   * @returns {Promise<{text: string, left?: string}>} `left`: marks are on this structure again
   */
  async turn(kind) {
    const back = kind === 'undo';
    this.observe();
    const list = () => (back ? this.history.done : this.history.undone).at(-1);
    const group = list()?.about.group;
    if (!group) {
      return { text: back ? DONE.nothingToUndo : DONE.nothingToRedo };
    }
    /** @type {About[]} */
    const turned = [];
    for (let edit = list(); edit?.about.group === group; edit = list()) {
      const boxes = await this.history.open(edit, back ? 'before' : 'after');
      this.observe();
      if (list() !== edit) {
        break; // painted on meanwhile
      }
      this.history[kind](boxes);
      this.draft.turn(kind);
      this.#write(strokes.over(this.history.labels, this.history.strokes));
      turned.push(edit.about);
    }
    if (back) {
      this.dots.remove(group);
    }
    this.#point();
    await this.prompter.follow(kind, turned);
    return { text: back ? DONE.undone : DONE.redone, left: back ? turned.at(-1)?.left : undefined };
  }

  /** Save the labels as final. @throws {server.Refused} 409 if somebody else saved since */
  async save() {
    this.observe();
    const { labels, strokes: drawn } = this.history;
    const looked_for = this.lookedFor;
    const label_info = looked_for.map(name => ({ name, idx: this.names.indexOf(name) + 1 }));
    const model = this.history.done.findLast(({ about }) => about.model)?.about.model ?? '';
    const params = { label_info, looked_for, client_id: server.CLIENT, model };
    this.base = await server.save(this.image.image, unnamed(this.names, labels), params, this.base);
    this.observe();
    if (drawn === this.history.strokes && this.history.drawn) {
      await this.edit(this.history.labels, { group: hex(4) }, new Uint8Array(this.labelmap.size));
    }
    if (labels === this.history.labels) {
      this.draft.saved(this.base);
    }
    return DONE.stored;
  }

  /** Let something read the labelmap while no strokes are in it. @param {() => Promise<unknown>} read */
  async bare(read) {
    this.observe();
    this.#write(this.history.labels);
    try {
      await read();
    } finally {
      this.observe();
      await this.#draw();
    }
  }

  /** @param {string} name @param {string|null} label */
  #colour(name, label) {
    return this.colourOf(name === BACKGROUND ? null : this.names.includes(name) ? name : label);
  }

  /** The colour of a structure's points; null: of background points. @param {string|null} name @returns {Colour} */
  colourOf(name) {
    return name === null ? [230, 230, 230] : colour(this.names.indexOf(name) + 1);
  }
}

/** @param {string} label @param {number} value from 1 @returns {import('./labelmap.mjs').Segment} */
function segmentOf(label, value) {
  return { value, label, colour: colour(value) };
}
