/** The work on one image: its labels on the screen, the prompts behind them, and what can be undone. */

import { Draft } from './draft.mjs';
import { History } from './history.mjs';
import { Labelmap, colour } from './labelmap.mjs';
import { changed, toText } from './mask.mjs';
import { BACKGROUND, meaning, over, painted, single, translation, valuesFor } from './meaning.mjs';
import * as points from './points.mjs';
import { hex } from './random.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { DONE, PROBLEMS, says } from './words.mjs';

/**
 * @typedef {import('./history.mjs').About} About
 * @typedef {import('./history.mjs').Edit} Edit
 * @typedef {{names: string[], models: Record<string, server.Model>, learn: (name: string) => void}} Known the
 *   structures that are offered, the server's models, and how to offer one more
 */

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
    this.models = models;
    this.labelmap = this.#labelmap(shown);
    this.history = new History(image.shape, new Uint8Array(this.labelmap.size));
    /** @type {Labels} */
    this.screen = this.history.labels; // as it was written last
    this.base = 0; // number of the saved revision that it is made from
    this.draft = new Draft(image.image, () => kept(this));
    /** @type {import('./history.mjs').Kept|null} */
    this.older = null; // unsaved work that was made from an older revision
    /** @type {server.Interaction|null} */
    this.interaction = null;
    this.unknown = false; // true if a prompt failed, so that the server's state is unknown
    /** @type {Map<string, Annotation[]>} */
    this.dots = new Map(); // points on the screen by the edit's group
    /** @type {number[]|null} */
    this.box = null; // that limits points and strokes
    /** @type {AbortController|null} */
    this.finer = null; // ends the wait for better masks, once there is a first
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
    const saved = labels.includes('final') ? await this.saved() : null;
    this.base = saved?.number ?? 0;
    this.history = new History(shape, saved?.labels ?? this.history.labels);
    const kept = await server.draft(image);
    const current = kept?.base === this.base;
    this.older = current ? null : kept;
    if (kept && current) {
      await this.#resume(kept);
    }
    await this.#draw();
    this.#point();
    return current ? DONE.resumed : kept ? DONE.older : saved ? DONE.saved : DONE.fresh;
  }

  /**
   * The final label, or an earlier revision of it.
   *
   * @param {number} [revision] its number
   */
  async saved(revision) {
    const { mask, params } = await server.label(this.image.image, 'final', revision);
    const { info, label_names, number } = params;
    const listed = (info.label_info ?? []).flatMap(one => (one.idx === undefined ? [] : [[one.name, one.idx]]));
    const named = listed.length ? listed : Object.entries(label_names ?? {});
    /** @type {Record<string, number>} */
    const names = Object.fromEntries(named.length ? named : this.names.map((name, at) => [name, at + 1]));
    Object.keys(names).forEach(name => name !== BACKGROUND && this.learn(name)); // so that saving keeps them
    const blank = new Uint8Array(this.labelmap.size);
    return { number, labels: over(this.names, this.image.shape, blank, mask.labels, { names }) };
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
      const prompted = this.history.done.findLast(({ about }) => about.interaction)?.about;
      if (prompted?.interaction && prompted.model && this.draft.key === kept.draft) {
        this.interaction = new server.Interaction(prompted.interaction, prompted.model);
        this.interaction.box = prompted.box ?? null;
      }
    }
  }

  /** Show it in a display set of the viewer that was made since, with its points. @param {DisplaySet} shown */
  async show(shown) {
    if (this.labelmap.displaySet !== shown) {
      this.labelmap = this.#labelmap(shown);
    }
    const dropped = !this.labelmap.there;
    await this.labelmap.ready();
    if (dropped) {
      await this.#draw();
    }
    this.#point();
  }

  /** Take its points off the screen, because another series is shown. */
  hide() {
    [...this.dots.values()].flat().forEach(points.remove);
    this.dots.clear();
  }

  /** Draw the points of the prompts that are not on the screen. */
  #point() {
    for (const { about } of this.history.done) {
      if (about.prompt && !this.dots.has(about.group)) {
        const { prompt, label = null, group } = about;
        this.dots.set(group, points.of(prompt, this.labelmap, name => this.#colour(name, label)));
      }
    }
  }

  async #draw() {
    await this.labelmap.ready();
    this.screen = strokes.over(this.history.labels, this.history.strokes);
    this.labelmap.write(this.screen);
  }

  /**
   * Take over what was painted by hand.
   *
   * @param {string} group of the edit: one movement of the brush is undone at once
   */
  observe(group = hex(4)) {
    const screen = this.labelmap.get();
    if (changed(this.screen, screen, this.image.shape)) {
      const { labels, strokes: drawn } = strokes.split(screen, this.history.labels, this.history.strokes);
      this.screen = screen;
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
  async #edit(labels, about, drawn = this.history.strokes) {
    const edit = this.#add(labels, drawn, about, true);
    await this.#draw();
    return edit;
  }

  /** What the labels are, if they are one model's answer alone. @returns {About|null} */
  get own() {
    const last = this.history.done.findLast(({ labels }) => labels)?.about;
    return last?.own && !this.unknown ? last : null;
  }

  /** Segment all structures. @param {string} model */
  async segment(model) {
    this.observe();
    const { shape } = this.image;
    const asked = this.history.labels;
    const { params, mask } = await server.infer(model, this.image.image, { client_id: server.CLIENT });
    this.observe();
    const meant = meaning(this.models[model], null, params);
    const labels = painted(over(this.names, shape, asked, mask.labels, meant), asked, this.history.labels);
    await this.#edit(labels, { group: hex(4), model, label: null, own: asked === this.history.labels });
    return answered(model, params);
  }

  /**
   * Add a prompt; each mask of the answer is shown.
   *
   * @param {string} model
   * @param {string} label the active structure
   * @param {server.Prompt} prompt
   * @param {Annotation[]} dots its points on the screen, removed if it fails or is undone
   * @param {(text: string) => void} tell is called after each mask
   */
  async prompt(model, label, prompt, dots, tell) {
    const finer = new AbortController();
    const group = hex(4);
    let text = '';
    /** @type {Edit|null} */
    let last = null;
    try {
      this.observe();
      const asked = this.history.labels;
      const { interaction, given } = await this.#given(model, label, prompt);
      for await (const { params, mask } of interaction.stream(given, finer.signal)) {
        this.observe();
        if (last && this.history.done.at(-1) !== last) {
          break; // the reader went on: a better mask would undo that
        }
        const meant = meaning(this.models[model], label, params, prompt);
        const answer = over(this.names, this.image.shape, asked, mask.labels, meant);
        const labels = last ? answer : painted(answer, asked, this.history.labels);
        const own = last ? last.about.own : asked === this.history.labels;
        const { size, smaller, larger } = params;
        const others = { size, smaller, larger };
        const about = { group, model, label, own, others, interaction: interaction.id, ...(last ? {} : { prompt }) };
        if (!last) {
          this.dots.set(group, dots);
          this.finer = finer;
          this.unknown = false;
        }
        last = await this.#edit(labels, about);
        text = answered(model, params);
        tell(text);
      }
    } catch (error) {
      if (!text) {
        dots.forEach(points.remove);
      }
      if (!text || !finer.signal.aborted) {
        this.unknown = true;
        throw error;
      }
    } finally {
      this.finer = null;
    }
    return text;
  }

  /**
   * Take the next larger or smaller answer to the prompts so far.
   *
   * @param {1|-1} step
   * @param {string} label the active structure
   * @param {(text: string) => void} tell is called after each mask
   */
  async resize(step, label, tell) {
    this.observe();
    const { interaction, own } = this;
    const held = interaction && own?.interaction === interaction.id && own.label === label;
    const { size = 0, smaller = 0, larger = 0 } = own?.others ?? {};
    if (!held || !(step > 0 ? larger : smaller)) {
      throw new Error(step > 0 ? PROBLEMS.noLarger : PROBLEMS.noSmaller);
    }
    return this.prompt(interaction.model, label, { size: size + step }, [], tell);
  }

  /** Stop waiting for better masks, because another action is next. */
  hurry() {
    this.finer?.abort();
  }

  /**
   * A prompt together with what the model must know first: the box, and a mask that is not its own.
   *
   * @param {string} model
   * @param {string} label
   * @param {server.Prompt} prompt
   */
  async #given(model, label, prompt) {
    const held = this.interaction?.model === model ? this.interaction : null;
    const last = this.own;
    const own = last?.model === model && (!single(this.models[model]) || last.label === label) ? last : null;
    const values = own ? null : valuesFor(this.names, this.models[model], label, this.history.labels);
    const interaction = (this.interaction = held ?? (await server.Interaction.open(model, this.image.image)));
    /** @type {server.Prompt} */
    let anew = {};
    if (own?.interaction && own.interaction !== interaction.id) {
      const start = valuesFor(this.names, this.models[model], label, this.history.labels);
      anew = { reset: true, ...(start ? { start: await toText(this.image.shape, start) } : {}) };
    } else if (values) {
      anew = { reset: true, start: await toText(this.image.shape, values) };
    } else if (held && own?.interaction !== held.id) {
      anew = { reset: true };
    }
    if (anew.reset) {
      interaction.box = null;
    }
    const boxed = this.box === interaction.box ? {} : { roi: this.box };
    interaction.box = this.box;
    return { interaction, given: { ...prompt, label, ...anew, ...boxed } };
  }

  /** Segment a structure from the strokes. @param {string} model @param {string} label */
  async scribble(model, label) {
    this.observe();
    const asked = this.history.labels;
    const drawn = this.history.strokes;
    if (!this.history.drawn && !this.box) {
      throw new Error(PROBLEMS.noStrokes);
    }
    const given = {
      client_id: server.CLIENT,
      label_info: strokes.LABEL_INFO,
      selected_label_name: label,
      ...(this.box ? { roi: this.box } : {}),
    };
    const { params, mask } = await server.infer(model, this.image.image, given, strokes.sent(drawn));
    this.observe();
    const answer = over(this.names, this.image.shape, asked, mask.labels, { only: label });
    const labels = painted(answer, asked, this.history.labels);
    const left = drawn === this.history.strokes ? strokes.used(drawn) : this.history.strokes;
    await this.#edit(labels, { group: hex(4), model, label }, left);
    return answered(model, params);
  }

  /** Marks are for another structure from now on: drop the box and the strokes. @param {string} left the one before */
  async leave(left) {
    this.observe();
    this.box = null;
    if (this.history.drawn) {
      await this.#edit(this.history.labels, { group: hex(4), left }, new Uint8Array(this.labelmap.size));
    }
  }

  /** Show other labels, which can be undone. @param {Labels} labels */
  async replace(labels) {
    this.observe();
    await this.#edit(labels, { group: hex(4) });
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
      this.screen = strokes.over(this.history.labels, this.history.strokes);
      this.labelmap.write(this.screen);
      turned.push(edit.about);
    }
    if (back) {
      this.dots.get(group)?.forEach(points.remove);
      this.dots.delete(group);
    }
    this.#point();
    if (turned.some(({ prompt, interaction }) => prompt && interaction === this.interaction?.id)) {
      await this.interaction?.turn(kind).catch(() => (this.interaction = null)); // the next prompt opens another one
    }
    return { text: back ? DONE.undone : DONE.redone, left: back ? turned.at(-1)?.left : undefined };
  }

  /** Save the labels as final. @throws {server.Refused} 409 if somebody else saved since */
  async save() {
    this.observe();
    const { labels, strokes: drawn } = this.history;
    const present = new Set(labels);
    const label_info = this.names.map((name, at) => ({ name, idx: at + 1 })).filter(one => present.has(one.idx));
    const model = this.history.done.findLast(({ about }) => about.model)?.about.model ?? '';
    const params = { label_info, client_id: server.CLIENT, model };
    this.base = await server.save(this.image.image, labels, params, this.base);
    this.observe();
    if (drawn === this.history.strokes && this.history.drawn) {
      await this.#edit(this.history.labels, { group: hex(4) }, new Uint8Array(this.labelmap.size));
    }
    if (labels === this.history.labels) {
      this.draft.saved(this.base);
    }
    return DONE.stored;
  }

  /** Let something read the labelmap while no strokes are in it. @param {() => Promise<unknown>} read */
  async bare(read) {
    this.observe();
    this.screen = this.history.labels;
    this.labelmap.write(this.screen);
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

/** @param {string} model @param {server.Params} params */
const answered = (model, params) => says.answered(model, params.latencies.total, params);

/** @param {string} label @param {number} value from 1 @returns {import('./labelmap.mjs').Segment} */
function segmentOf(label, value) {
  return { value, label, colour: colour(value) };
}
