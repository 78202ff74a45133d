/** The models' part of the work on one image: what they are asked, and their answers as edits of its labels. */

import { toText } from './mask.mjs';
import { meaning, over, painted, single, valuesFor } from './meaning.mjs';
import * as points from './points.mjs';
import { hex } from './random.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { PROBLEMS, says } from './words.mjs';

/**
 * @typedef {import('./history.mjs').About} About
 * @typedef {import('./history.mjs').Edit} Edit
 */

export class Prompter {
  /** @param {import('./work.mjs').Work} work @param {Record<string, server.Model>} models the server's */
  constructor(work, models) {
    this.work = work;
    this.models = models;
    /** @type {server.Interaction|null} */
    this.interaction = null;
    this.unknown = false; // true if a prompt failed, so that the server's state is unknown
    /** @type {AbortController|null} */
    this.finer = null; // ends the wait for better masks, once there is a first
  }

  /** Go on with the interaction of the last prompt of the work's history. */
  resume() {
    const prompted = this.work.history.done.findLast(({ about }) => about.interaction)?.about;
    if (prompted?.interaction && prompted.model) {
      this.interaction = new server.Interaction(prompted.interaction, prompted.model);
      this.interaction.box = prompted.box ?? null;
    }
  }

  /** What the labels are, if they are one model's answer alone. @returns {About|null} */
  get #own() {
    const last = this.work.history.done.findLast(({ labels }) => labels)?.about;
    return last?.own && !this.unknown ? last : null;
  }

  /** Segment all structures. @param {string} model */
  async segment(model) {
    const { work } = this;
    work.observe();
    const { image, shape } = work.image;
    const asked = work.history.labels;
    const { params, mask } = await server.infer(model, image, { client_id: server.CLIENT });
    work.observe();
    const meant = meaning(this.models[model], null, params);
    const labels = painted(over(work.names, shape, asked, mask.labels, meant), asked, work.history.labels);
    await work.edit(labels, { group: hex(4), model, label: null, own: asked === work.history.labels });
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
    const { work } = this;
    const finer = new AbortController();
    const group = hex(4);
    let text = '';
    /** @type {Edit|null} */
    let last = null;
    try {
      work.observe();
      const asked = work.history.labels;
      const { interaction, given } = await this.#given(model, label, prompt);
      for await (const { params, mask } of interaction.stream(given, finer.signal)) {
        work.observe();
        if (last && work.history.done.at(-1) !== last) {
          break; // the reader went on: a better mask would undo that
        }
        const meant = meaning(this.models[model], label, params, prompt);
        const answer = over(work.names, work.image.shape, asked, mask.labels, meant);
        const labels = last ? answer : painted(answer, asked, work.history.labels);
        const own = last ? last.about.own : asked === work.history.labels;
        const { size, smaller, larger } = params;
        const others = { size, smaller, larger };
        const about = { group, model, label, own, others, interaction: interaction.id, ...(last ? {} : { prompt }) };
        if (!last) {
          work.dots.keep(group, dots);
          this.finer = finer;
          this.unknown = false;
        }
        last = await work.edit(labels, about);
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
    this.work.observe();
    const interaction = this.interaction;
    const own = this.#own;
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
    const { image, names, history, box } = this.work;
    const held = this.interaction?.model === model ? this.interaction : null;
    const last = this.#own;
    const own = last?.model === model && (!single(this.models[model]) || last.label === label) ? last : null;
    const values = own ? null : valuesFor(names, this.models[model], label, history.labels);
    const interaction = (this.interaction = held ?? (await server.Interaction.open(model, image.image)));
    /** @type {server.Prompt} */
    let anew = {};
    if (own?.interaction && own.interaction !== interaction.id) {
      const start = valuesFor(names, this.models[model], label, history.labels);
      anew = { reset: true, ...(start ? { start: await toText(image.shape, start) } : {}) };
    } else if (values) {
      anew = { reset: true, start: await toText(image.shape, values) };
    } else if (held && own?.interaction !== held.id) {
      anew = { reset: true };
    }
    if (anew.reset) {
      interaction.box = null;
    }
    const boxed = box === interaction.box ? {} : { roi: box };
    interaction.box = box;
    return { interaction, given: { ...prompt, label, ...anew, ...boxed } };
  }

  /** Segment a structure from the strokes. @param {string} model @param {string} label */
  async scribble(model, label) {
    const { work } = this;
    work.observe();
    const { labels: asked, strokes: drawn } = work.history;
    if (!work.history.drawn && !work.box) {
      throw new Error(PROBLEMS.noStrokes);
    }
    const given = {
      client_id: server.CLIENT,
      label_info: strokes.LABEL_INFO,
      selected_label_name: label,
      ...(work.box ? { roi: work.box } : {}),
    };
    const { params, mask } = await server.infer(model, work.image.image, given, strokes.sent(drawn));
    work.observe();
    const answer = over(work.names, work.image.shape, asked, mask.labels, { only: label });
    const labels = painted(answer, asked, work.history.labels);
    const left = drawn === work.history.strokes ? strokes.used(drawn) : work.history.strokes;
    await work.edit(labels, { group: hex(4), model, label }, left);
    return answered(model, params);
  }

  /**
   * The work's history was turned: so must the interaction be, whose prompts were among it.
   *
   * @param {'undo'|'redo'} kind
   * @param {About[]} turned
   */
  async follow(kind, turned) {
    if (turned.some(({ prompt, interaction }) => prompt && interaction === this.interaction?.id)) {
      await this.interaction?.turn(kind).catch(() => (this.interaction = null)); // the next prompt opens another one
    }
  }
}

/** @param {string} model @param {server.Params} params */
const answered = (model, params) => says.answered(model, params.latencies.total, params);
