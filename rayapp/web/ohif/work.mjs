/** The work on one image: the labels on the screen, the prompts behind them, and the steps that can be undone. */

import { Labelmap, colour } from './labelmap.mjs';
import { decode, fromText, toText } from './mask.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { DONE, PROBLEMS, says } from './words.mjs';

export const BACKGROUND = 'background';
const SINGLE = 'deepgrow'; // the type of models of one structure, whichever the prompts are on
const STEPS = 20; // that can be undone

/**
 * @typedef {{names: string[], models: Record<string, server.Model>, learn: (name: string) => void}} Known the
 *   structures that are offered, the server's models, and how to offer one more
 * @typedef {{model: string, label: string|null, labels: Labels}} Own labels that one model alone has produced
 * @typedef {object} Step
 * @property {Labels|null} before null: as of the interaction before the prompt
 * @property {(Omit<Own, 'labels'> & {labels?: Labels})|null} [own]
 * @property {string} [label]
 * @property {server.Interaction} [interaction] of a prompt
 * @property {Annotation[]} [dots] a prompt's points on the screen
 * @typedef {{names: Record<string, number>}|{only: string, slice?: number}} Meaning of a mask's values: the model's
 *   names, or the one structure, perhaps on one slice alone
 */

export class Work {
  /**
   * Open a series that the viewer shows.
   *
   * @param {Services} services
   * @param {DisplaySet} shown
   * @param {Known} known
   */
  static async open(services, shown, known) {
    const image = await server.imageOfSeries(shown.SeriesInstanceUID);
    const structures = known.names.map((label, at) => segmentOf(label, at + 1));
    return new Work(new Labelmap(services, shown, image, [...structures, ...strokes.SEGMENTS]), known);
  }

  /** @param {Labelmap} labelmap @param {Known} known */
  constructor(labelmap, { names, models, learn }) {
    this.labelmap = labelmap;
    this.names = names;
    this.offer = learn;
    this.models = models;
    /** @type {server.Interaction|null} */
    this.interaction = null;
    /** @type {Labels|null} */
    this.strokes = null; // drawn so far
    /** @type {number[]|null} */
    this.box = null; // that limits points and strokes
    this.model = ''; // the last one that answered
    /** @type {Own|null} */
    this.own = null; // the labels on the screen while they are one model's alone
    /** @type {{size?: number, smaller?: number, larger?: number}} */
    this.others = {}; // answers that the last prompts may mean as well
    /** @type {Step[]} */
    this.done = []; // what can be undone
    /** @type {AbortController|null} */
    this.finer = null; // ends the wait for better masks, once there is a first
  }

  get image() {
    return this.labelmap.image;
  }

  /** Know a structure from now on. @param {string} name */
  learn(name) {
    if (!this.names.includes(name)) {
      this.offer(name);
      this.labelmap.add(segmentOf(name, this.names.length));
    }
  }

  /** Show the saved label, or the prompts given since. Returns what to say of it. */
  async begin() {
    const saved = this.image.labels.includes('final') ? await server.label(this.image.image, 'final') : null;
    const blank = new Uint8Array(this.labelmap.size);
    const labels = saved ? this.#over(blank, saved.mask.labels, { names: this.#saved(saved.params) }) : blank;
    await this.labelmap.set(labels);
    if (await this.#resume(labels, saved?.params.saved ?? 0)) {
      return DONE.resumed;
    }
    return saved ? DONE.saved : DONE.fresh;
  }

  /** Segment all structures. @param {string} model */
  async segment(model) {
    const before = this.#current();
    const { params, mask } = await server.infer(model, this.image.image, { client_id: server.CLIENT });
    await this.#show(model, null, this.#over(before, mask.labels, this.#meaning(model, null, params)));
    this.#remember({ before });
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
    const [before, own] = [this.#current(), this.own];
    let text = '';
    try {
      const { interaction, given } = await this.#given(model, label, prompt, before);
      for await (const { params, mask } of interaction.stream(given, finer.signal)) {
        const labels = this.#over(before, mask.labels, this.#meaning(model, label, params, prompt));
        await this.#show(model, label, labels);
        this.others = params;
        if (!text) {
          this.#remember({ before, own, interaction, dots });
          this.finer = finer;
        }
        text = answered(model, params);
        tell(text);
      }
    } catch (error) {
      if (!text) {
        dots.forEach(points.remove);
      }
      if (!text || !finer.signal.aborted) {
        this.own = null; // the server's state is unknown
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
    const { size = 0, smaller = 0, larger = 0 } = this.others;
    const held = this.own && this.own.label === label && equal(this.#current(), this.own.labels);
    if (!this.interaction || !held || !(step > 0 ? larger : smaller)) {
      throw new Error(step > 0 ? PROBLEMS.noLarger : PROBLEMS.noSmaller);
    }
    return this.prompt(this.interaction.model, label, { size: size + step }, [], tell);
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
   * @param {Labels} before
   */
  async #given(model, label, prompt, before) {
    const held = this.interaction?.model === model ? this.interaction : null;
    const interaction = (this.interaction = held ?? (await server.Interaction.open(model, this.image.image)));
    const single = this.models[model].type === SINGLE;
    const own = this.own?.model === model && (!single || this.own.label === label) ? this.own : null;
    const same = own !== null && equal(before, own.labels);
    const values = same ? null : this.#values(model, label, before);
    /** @type {server.Prompt} */
    let anew = same || !held ? {} : { reset: true };
    if (values) {
      anew = { reset: true, start: await toText(this.image.shape, values) };
    }
    if (anew.reset) {
      interaction.box = null;
    }
    const boxed = this.box === interaction.box ? {} : { roi: this.box };
    interaction.box = this.box;
    return { interaction, given: { ...prompt, label, ...anew, ...boxed } };
  }

  /**
   * Segments as values of a model; null if there is nothing for it to start from.
   *
   * @param {string} model
   * @param {string} label
   * @param {Labels} segments
   */
  #values(model, label, segments) {
    const { labels, type } = this.models[model];
    const values = new Uint8Array(256);
    const named = type === SINGLE ? [/** @type {const} */ ([label, 1])] : Object.entries(labels);
    for (const [name, value] of named) {
      if (name !== BACKGROUND && this.names.includes(name)) {
        values[this.names.indexOf(name) + 1] = value;
      }
    }
    const start = segments.map(segment => values[segment]);
    return start.some(value => value > 0) ? start : null;
  }

  /** Segment a structure from the strokes. @param {string} model @param {string} label */
  async scribble(model, label) {
    const before = this.#current();
    if (!this.strokes && !this.box) {
      throw new Error(PROBLEMS.noStrokes);
    }
    const given = {
      client_id: server.CLIENT,
      label_info: strokes.LABEL_INFO,
      selected_label_name: label,
      ...(this.box ? { roi: this.box } : {}),
    };
    const drawn = this.strokes ?? new Uint8Array(this.labelmap.size);
    const { params, mask } = await server.infer(model, this.image.image, given, drawn);
    await this.#show(model, label, this.#over(before, mask.labels, { only: label }));
    this.own = null;
    this.#remember({ before });
    return answered(model, params);
  }

  async undo() {
    const last = this.done.at(-1);
    if (!last) {
      return DONE.nothingToUndo;
    }
    let labels = last.before;
    if (last.interaction) {
      const { model } = last.interaction;
      const { params, mask } = await last.interaction.undo();
      this.others = params;
      labels ??= this.#over(this.#current(), mask.labels, this.#meaning(model, last.label ?? null, params));
      last.dots?.forEach(points.remove);
    }
    const shown = labels ?? this.#current();
    await this.labelmap.set(shown);
    this.own = last.own ? { ...last.own, labels: shown } : null;
    this.done = this.done.slice(0, -1);
    return DONE.undone;
  }

  async save() {
    const labels = this.#current();
    const present = new Set(labels);
    const label_info = this.names.map((name, at) => ({ name, idx: at + 1 })).filter(one => present.has(one.idx));
    await server.save(this.image.image, labels, { label_info, client_id: server.CLIENT, model: this.model });
    await this.labelmap.set(labels);
    this.strokes = null;
    return DONE.stored;
  }

  /**
   * Resume this annotator's last interaction on the image if it is younger than the saved label.
   *
   * @param {Labels} saved
   * @param {number} since when it was saved, in Unix time
   */
  async #resume(saved, since) {
    const younger = (/** @type {server.InteractionState} */ one) => (one.events.at(-1)?.ts ?? 0) - since;
    const known = (await server.interactions(this.image.image)).filter(
      one => one.prompts.length && this.models[one.model]?.dimension === 3 && younger(one) > 0
    );
    const [last] = known.sort((a, b) => younger(b) - younger(a));
    if (!last) {
      return false;
    }
    const { model, prompts } = last;
    const interaction = (this.interaction = new server.Interaction(last.id, model));
    let [label, labels] = [this.names[0], saved];
    for (const [at, prompt] of prompts.entries()) {
      label = prompt.label ?? label;
      this.learn(label);
      this.box = interaction.box = prompt.roi ?? (prompt.reset ? null : this.box);
      const dots = points.of(prompt, this.labelmap, name => this.#colour(name, label));
      const start = prompt.start ? await decode(fromText(prompt.start)) : null;
      const named = { label_names: this.models[model].labels };
      let before = at ? null : saved;
      if (start) {
        before = this.#over(labels, start.labels, this.#meaning(model, label, named));
      }
      this.#remember({ before, own: before ? null : { model, label }, label, interaction, dots });
      if (!prompts[at + 1] || (prompts[at + 1].reset && this.models[model].type === SINGLE)) {
        const { params, mask } = await interaction.at(prompt.step); // also of the structures before
        labels = this.#over(labels, mask.labels, this.#meaning(model, label, params));
        this.others = params;
      }
    }
    await this.#show(model, label, labels);
    return true;
  }

  /** @param {string} name @param {string} label */
  #colour(name, label) {
    return this.colourOf(name === BACKGROUND ? null : this.names.includes(name) ? name : label);
  }

  /** The colour of a structure's points; null: of background points. @param {string|null} name @returns {Colour} */
  colourOf(name) {
    return name === null ? [230, 230, 230] : colour(this.names.indexOf(name) + 1);
  }

  /**
   * @param {string} model
   * @param {string|null} label
   * @param {{label_names: Record<string, number>}} params
   * @param {server.Prompt} prompt
   * @returns {Meaning}
   */
  #meaning(model, label, params, { clicks = {} } = {}) {
    const { type, dimension } = this.models[model];
    const slice = dimension === 2 ? Object.values(clicks).flat().at(-1)?.[2] : undefined;
    return type === SINGLE && label !== null ? { only: label, slice } : { names: params.label_names };
  }

  /** The values of a saved label by name. @param {server.LabelParams} params @returns {Record<string, number>} */
  #saved({ info, label_names }) {
    const listed = (info.label_info ?? []).flatMap(one => (one.idx === undefined ? [] : [[one.name, one.idx]]));
    const named = listed.length ? listed : Object.entries(label_names ?? {});
    const names = Object.fromEntries(named.length ? named : this.names.map((name, at) => [name, at + 1]));
    Object.keys(names).forEach(name => name !== BACKGROUND && this.learn(name)); // so that saving keeps them
    return names;
  }

  /**
   * A mask over earlier labels: structures that the model does not know stay where it finds none of its own.
   *
   * @param {Labels} before
   * @param {Uint8Array|Uint16Array} mask
   * @param {Meaning} meaning
   */
  #over(before, mask, meaning) {
    const [segments, owned] = [new Uint8Array(65536), new Uint8Array(256)];
    let [first, end] = [0, before.length];
    if ('only' in meaning) {
      segments.fill(this.names.indexOf(meaning.only) + 1, 1);
      owned[segments[1]] = 1;
      if (meaning.slice !== undefined) {
        const plane = this.image.shape[0] * this.image.shape[1];
        [first, end] = [meaning.slice * plane, (meaning.slice + 1) * plane];
      }
    } else {
      for (const [name, value] of Object.entries(meaning.names)) {
        segments[value] = this.names.indexOf(name) + 1;
        owned[segments[value]] = 1;
      }
    }
    const over = before.slice();
    for (let at = first; at < end; at++) {
      over[at] = segments[mask[at]] || (owned[before[at]] ? 0 : before[at]);
    }
    return over;
  }

  /** @param {string} model @param {string|null} label @param {Labels} labels */
  async #show(model, label, labels) {
    await this.labelmap.set(labels);
    this.model = model;
    this.own = { model, label, labels };
  }

  /** The segments on the screen without strokes; new strokes are kept for later. */
  #current() {
    const { rest, strokes: drawn } = strokes.split(this.labelmap.get(), this.labelmap.shown);
    if (drawn.some(value => value > 0)) {
      this.strokes = strokes.joined(this.strokes, drawn);
    }
    return rest;
  }

  /** @param {Step} step */
  #remember(step) {
    this.done = [...this.done, { own: null, ...step }].slice(-STEPS);
  }
}

/** @param {string} model @param {server.Params} params */
const answered = (model, params) => says.answered(model, params.latencies.total, params);

/** @param {Labels} one @param {Labels} other */
function equal(one, other) {
  return one.every((value, at) => value === other[at]);
}

/** @param {string} label @param {number} value from 1 @returns {import('./labelmap.mjs').Segment} */
function segmentOf(label, value) {
  return { value, label, colour: colour(value) };
}
