/** What was done to an image's labels: one list of edits that can be undone and redone, each kept as a changed box. */

import { changed, cut, fromText, open, pack, paste } from './mask.mjs';
import { hex } from './random.mjs';

/**
 * @typedef {import('./mask.mjs').Part} Part
 * @typedef {Promise<Uint8Array<ArrayBuffer>>} Packed
 * @typedef {{before: Packed, after: Packed}} Change a box of a volume, before and after an edit
 * @typedef {object} About what else is known of an edit, as JSON
 * @property {string} group edits of one group are undone and redone together
 * @property {string} [model] that answered
 * @property {string|null} [label] the structure that was active
 * @property {boolean} [own] true if the labels were the model's answer alone
 * @property {string} [interaction] id of the interaction that a prompt belongs to
 * @property {import('./server.mjs').Prompt} [prompt]
 * @property {number[]|null} [box] that limits prompts
 * @property {{size?: number, smaller?: number, larger?: number}} [others] answers that the prompts may mean as well
 * @property {Record<string, boolean>} [looked] structures that were marked as looked for, or no longer
 * @property {string} [left] the structure whose strokes were dropped for that of another one
 * @typedef {{request: string, labels: Change|null, strokes: Change|null, about: About}} Edit
 * @typedef {{draft: string, base: number, names: string[], start: string, done: KeptEdit[], undone: KeptEdit[],
 *   ts: number}} Kept a draft on the server
 * @typedef {{request: string, labels?: string, strokes?: string, about: About}} KeptEdit
 * @typedef {{labels: Part|null, strokes: Part|null}} Opened
 */

export class History {
  /** @param {number[]} shape @param {Labels} labels at the beginning */
  constructor(shape, labels) {
    this.shape = shape;
    this.labels = labels; // without strokes
    /** @type {Labels} */
    this.strokes = new Uint8Array(labels.length); // 1, 2: foreground, background; 3, 4: those used already
    /** @type {Edit[]} */
    this.done = [];
    /** @type {Edit[]} */
    this.undone = []; // the next one to redo is the last
    this.counts = new Float64Array(256); // voxels by label
    this.#count(labels, 1);
  }

  /** @param {Uint8Array|Uint16Array} labels that came (1) or went (-1) @param {1|-1} sign */
  #count(labels, sign) {
    for (let at = 0; at < labels.length; at++) {
      this.counts[labels[at]] += sign;
    }
  }

  /** True if there are strokes, also used ones. */
  get drawn() {
    return this.strokes.some(value => value > 0);
  }

  /**
   * Add an edit.
   *
   * @param {Labels} labels after it
   * @param {Labels} strokes after it
   * @param {About} about
   * @param {boolean} always also if nothing changed
   * @returns {Edit|null} null if nothing changed
   */
  add(labels, strokes, about, always = false) {
    const edit = {
      request: hex(8),
      labels: this.#change(this.labels, labels, always, true),
      strokes: this.#change(this.strokes, strokes, false, false),
      about,
    };
    if (!edit.labels && !edit.strokes) {
      return null;
    }
    [this.labels, this.strokes] = [labels, strokes];
    this.done.push(edit);
    this.undone = [];
    return edit;
  }

  /**
   * @param {Labels} before
   * @param {Labels} after
   * @param {boolean} always
   * @param {boolean} counted
   * @returns {Change|null}
   */
  #change(before, after, always, counted) {
    const box = changed(before, after, this.shape) ?? (always ? { corner: [0, 0, 0], size: [0, 0, 0] } : null);
    if (!box) {
      return null;
    }
    const [old, now] = [cut(before, this.shape, box), cut(after, this.shape, box)];
    if (counted) {
      this.#count(old.values, -1);
      this.#count(now.values, 1);
    }
    return { before: pack(old), after: pack(now) };
  }

  /**
   * The boxes of an edit, for `undo` and `redo`.
   *
   * @param {Edit} edit
   * @param {'before'|'after'} when
   * @returns {Promise<Opened>}
   */
  async open(edit, when) {
    const opened = async (/** @type {Change|null} */ change) => change && open((await change[when]).buffer);
    return { labels: await opened(edit.labels), strokes: await opened(edit.strokes) };
  }

  /** Undo the last edit. @param {Opened} boxes as before it */
  undo(boxes) {
    this.#paste(boxes);
    this.undone.push(/** @type {Edit} */ (this.done.pop()));
  }

  /** Redo the edit that was undone last. @param {Opened} boxes as after it */
  redo(boxes) {
    this.#paste(boxes);
    this.done.push(/** @type {Edit} */ (this.undone.pop()));
  }

  /** @param {Opened} boxes */
  #paste({ labels, strokes }) {
    if (labels) {
      this.labels = this.labels.slice();
      this.#count(cut(this.labels, this.shape, labels).values, -1);
      this.#count(labels.values, 1);
      paste(this.labels, labels);
    }
    if (strokes) {
      this.strokes = this.strokes.slice();
      paste(this.strokes, strokes);
    }
  }

  /**
   * A history as a draft kept it.
   *
   * @param {number[]} shape
   * @param {Kept} kept
   * @param {Uint8Array|null} values a draft's values as those in use now; null if they are the same
   */
  static async of(shape, kept, values) {
    const translated = (/** @type {Part} */ part) => {
      part.values.forEach((value, at) => (part.values[at] = values ? values[value] : value));
      return part;
    };
    const history = new History(shape, new Uint8Array(shape[0] * shape[1] * shape[2]));
    history.#paste({ labels: translated(await open(fromText(kept.start))), strokes: null });
    for (const one of [...kept.done, ...kept.undone.toReversed()]) {
      const labels = one.labels ? translated(await open(fromText(one.labels))) : null;
      const strokes = one.strokes ? await open(fromText(one.strokes)) : null;
      const change = (/** @type {Labels} */ volume, /** @type {Part|null} */ part) =>
        part && { before: pack(cut(volume, shape, part)), after: pack(part) };
      const { request, about } = one;
      history.undone = [
        { request, about, labels: change(history.labels, labels), strokes: change(history.strokes, strokes) },
      ];
      history.redo({ labels, strokes });
    }
    for (let left = kept.undone.length; left; left--) {
      history.undo(await history.open(/** @type {Edit} */ (history.done.at(-1)), 'before'));
    }
    return history;
  }
}
