/** One image as it is worked on: what the screen shows, the prompts behind it, and the steps that can be undone. */

import { Labelmap, colour } from './labelmap.mjs';
import { decode, fromText, toText } from './mask.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';

export const BACKGROUND = 'background';
const SINGLE = 'deepgrow'; // the type of models of one structure, whichever is pointed at
const STEPS = 20; // that can be undone

export class Work {
  /** Go to a series that the viewer shows. @param {{names: string[], models: object}} known what the server has */
  static async open(services, shown, known) {
    const image = await server.imageOfSeries(shown.SeriesInstanceUID);
    const structures = known.names.map((label, at) => ({ value: at + 1, label, colour: colour(at + 1) }));
    return new Work(new Labelmap(services, shown, image, [...structures, ...strokes.SEGMENTS]), known);
  }

  constructor(labelmap, { names, models }) {
    this.labelmap = labelmap;
    this.names = names;
    this.models = models;
    this.interaction = null;
    this.strokes = null; // drawn, and not outlined with yet or to be outlined with again
    this.box = null; // that points and strokes are kept to
    this.model = ''; // that was asked last
    this.own = null; // the mask on the screen while it is one model's alone: {model, label, labels}
    this.done = []; // what can be undone: {before, own} of all, {interaction, dots} of prompts
    this.finer = null; // ends the wait for better masks, once there is one
  }

  get image() {
    return this.labelmap.image;
  }

  /** Show what is there already: what was saved, or the prompts since. What to say of it. */
  async begin() {
    const saved = this.image.labels.includes('final') ? await server.label(this.image.image, 'final') : null;
    const blank = new Uint8Array(this.labelmap.size);
    const labels = saved ? this.#over(blank, saved.mask.labels, { names: this.#saved(saved.params) }) : blank;
    await this.labelmap.set(labels);
    if (await this.#resume(labels, saved?.params.saved ?? 0)) {
      return 'ready; your points are as you left them, and not saved yet';
    }
    return saved ? 'ready; this is what was saved' : 'ready; nothing was saved of this image yet';
  }

  async segment(model) {
    const before = this.#current();
    const { params, mask } = await server.infer(model, this.image.image, { client_id: server.CLIENT });
    await this.#show(model, null, this.#over(before, mask.labels, this.#told(model, null, params)));
    this.#remember({ before });
    return `${model}, ${seconds(params)}`;
  }

  /**
   * Say one thing more to a model; each mask that it comes to is shown, and told of.
   *
   * @param {{clicks?: object, extremes?: object, curves?: number[][][]}} said in voxels
   * @param {string} label the structure that is worked on
   * @param {object[]} dots of it on the screen: they go when it fails, or is undone
   * @param {(text: string) => void} tell
   */
  async prompt(model, label, said, dots, tell) {
    const finer = new AbortController();
    const [before, own] = [this.#current(), this.own];
    let text = '';
    try {
      const { interaction, given } = await this.#given(model, label, said, before);
      for await (const { params, mask } of interaction.stream(given, finer.signal)) {
        const labels = this.#over(before, mask.labels, this.#told(model, label, params, said));
        await this.#show(model, label, labels);
        if (!text) {
          this.#remember({ before, own, interaction, dots });
          this.finer = finer;
        }
        text = `${model}, ${seconds(params)}`;
        tell(text);
      }
    } catch (error) {
      if (!text) {
        dots.forEach(points.remove);
      }
      if (!text || !finer.signal.aborted) {
        this.own = null; // what the server has of it is not known
        throw error;
      }
    } finally {
      this.finer = null;
    }
    return text;
  }

  /** Stop waiting for better masks: something else is to be done. */
  hurry() {
    this.finer?.abort();
  }

  /** What is said, with what the model must be told first: the box, and a mask that is not its own. */
  async #given(model, label, said, before) {
    const fresh = this.interaction?.model !== model;
    if (fresh) {
      this.interaction = await server.Interaction.open(model, this.image.image);
    }
    const interaction = this.interaction;
    const single = this.models[model].type === SINGLE;
    const same = this.own?.model === model && (!single || this.own.label === label) && equal(before, this.own.labels);
    const values = same ? null : this.#values(model, label, before);
    const anew = values ? { reset: true, start: await toText(this.image.shape, values) } : same || fresh ? {} : { reset: true };
    if (anew.reset) {
      interaction.box = null;
    }
    const boxed = this.box === interaction.box ? {} : { roi: this.box };
    interaction.box = this.box;
    return { interaction, given: { ...said, label, ...anew, ...boxed } };
  }

  /** The segments as values of a model; null if there is nothing that it could start from. */
  #values(model, label, segments) {
    const { labels, type } = this.models[model];
    const values = new Uint8Array(256);
    for (const [name, value] of type === SINGLE ? [[label, 1]] : Object.entries(labels)) {
      if (name !== BACKGROUND && this.names.includes(name)) {
        values[this.names.indexOf(name) + 1] = value;
      }
    }
    const made = segments.map(segment => values[segment]);
    return made.some(value => value > 0) ? made : null;
  }

  async scribble(model, label) {
    const before = this.#current();
    if (!this.strokes && !this.box) {
      throw new Error('draw on the structure and beside it first, or set a box');
    }
    const said = { client_id: server.CLIENT, label_info: strokes.LABEL_INFO, selected_label_name: label };
    const given = { ...said, ...(this.box ? { roi: this.box } : {}) };
    const drawn = this.strokes ?? new Uint8Array(this.labelmap.size);
    const { params, mask } = await server.infer(model, this.image.image, given, drawn);
    await this.#show(model, label, this.#over(before, mask.labels, { only: label }));
    this.own = null;
    this.#remember({ before });
    return `${model}, ${seconds(params)}`;
  }

  async undo() {
    const last = this.done.at(-1);
    if (!last) {
      return 'there is nothing to undo';
    }
    let labels = last.before;
    if (last.interaction) {
      const { model } = last.interaction;
      const { params, mask } = await last.interaction.undo();
      labels ??= this.#over(this.#current(), mask.labels, this.#told(model, last.label, params));
      last.dots.forEach(points.remove);
    }
    await this.labelmap.set(labels);
    this.own = last.own ? { ...last.own, labels } : null;
    this.done = this.done.slice(0, -1);
    return 'undone';
  }

  async save() {
    const labels = this.#current();
    const present = new Set(labels);
    const label_info = this.names.map((name, at) => ({ name, idx: at + 1 })).filter(one => present.has(one.idx));
    await server.save(this.image.image, labels, { label_info, client_id: server.CLIENT, model: this.model });
    await this.labelmap.set(labels);
    this.strokes = null;
    return 'saved';
  }

  /** Go on with the last prompts of this annotator on the image, if they are younger than what was saved. */
  async #resume(saved, since) {
    const known = (await server.interactions(this.image.image)).filter(
      one => one.prompts.length && this.models[one.model]?.dimension === 3 && one.events.at(-1).ts > since
    );
    const [last] = known.sort((a, b) => b.events.at(-1).ts - a.events.at(-1).ts);
    if (!last) {
      return false;
    }
    const { model, prompts } = last;
    const interaction = (this.interaction = new server.Interaction(last.id, model));
    let [label, labels] = [this.names[0], saved];
    for (const [at, prompt] of prompts.entries()) {
      label = prompt.label ?? label;
      this.box = interaction.box = prompt.roi ?? (prompt.reset ? null : this.box);
      const dots = points.of(prompt, this.labelmap, name => this.#colour(name, label));
      const begun = prompt.start && (await decode(fromText(prompt.start)));
      const before = begun ? this.#over(labels, begun.labels, this.#told(model, label, { label_names: this.models[model].labels })) : at ? null : saved;
      this.#remember({ before, own: before ? null : { model, label }, label, interaction, dots });
      if (!prompts[at + 1] || (prompts[at + 1].reset && this.models[model].type === SINGLE)) {
        const { params, mask } = await interaction.at(prompt.step); // also of structures before
        labels = this.#over(labels, mask.labels, this.#told(model, label, params));
      }
    }
    await this.#show(model, label, labels);
    return true;
  }

  #colour(name, label) {
    return this.colourOf(name === BACKGROUND ? null : this.names.includes(name) ? name : label);
  }

  /** Of a structure's points; of those beside it (null), too. */
  colourOf(name) {
    return name === null ? [230, 230, 230] : colour(this.names.indexOf(name) + 1);
  }

  /** What an answer's values mean: the model's `names`, or the one structure (`only`), perhaps on one `slice` alone. */
  #told(model, label, params, { clicks = {} } = {}) {
    const { type, dimension } = this.models[model];
    const slice = dimension === 2 ? Object.values(clicks).flat().at(-1)?.[2] : undefined;
    return type === SINGLE ? { only: label, slice } : { names: params.label_names };
  }

  /** The names of a saved label's values. */
  #saved({ info, label_names }) {
    const said = (info.label_info ?? []).filter(one => one.idx !== undefined).map(one => [one.name, one.idx]);
    const named = said.length ? said : Object.entries(label_names ?? {});
    return Object.fromEntries(named.length ? named : this.names.map((name, at) => [name, at + 1]));
  }

  /** An answer over what was there: structures that the model does not know stay where it finds none of its own. */
  #over(before, labels, { names = {}, only = null, slice }) {
    const [segments, owned] = [new Uint8Array(65536), new Uint8Array(256)];
    for (const [name, value] of only ? [] : Object.entries(names)) {
      segments[value] = this.names.indexOf(name) + 1;
      owned[segments[value]] = 1;
    }
    if (only) {
      segments.fill(this.names.indexOf(only) + 1, 1);
      owned[segments[1]] = 1;
    }
    const plane = this.image.shape[0] * this.image.shape[1];
    const [first, end] = slice === undefined ? [0, before.length] : [slice * plane, (slice + 1) * plane];
    const over = before.slice();
    for (let at = first; at < end; at++) {
      over[at] = segments[labels[at]] || (owned[before[at]] ? 0 : before[at]);
    }
    return over;
  }

  async #show(model, label, labels) {
    await this.labelmap.set(labels);
    this.model = model;
    this.own = { model, label, labels };
  }

  /** The segments as they are on the screen, without strokes, of which those drawn since are kept for later. */
  #current() {
    const { rest, strokes: drawn } = strokes.split(this.labelmap.get(), this.labelmap.shown);
    if (drawn.some(value => value > 0)) {
      this.strokes = strokes.joined(this.strokes, drawn);
    }
    return rest;
  }

  #remember(step) {
    this.done = [...this.done, { own: null, ...step }].slice(-STEPS);
  }
}

const seconds = params => `${params.latencies.total.toFixed(1)} s`;

function equal(one, other) {
  return one.every((value, at) => value === other[at]);
}
