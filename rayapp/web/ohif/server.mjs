/** The panel's requests to the server that served it. */

import { decode, fromText } from './mask.mjs';
import { hex } from './random.mjs';
import { PROBLEMS } from './words.mjs';

/**
 * @typedef {import('./mask.mjs').Mask} Mask
 * @typedef {import('./labelmap.mjs').Image} Image
 * @typedef {{type: string, labels: Record<string, number>, dimension: number, description: string}} Model
 * @typedef {{models: Record<string, Model>, strategies: Record<string, {description: string}>,
 *   scoring: Record<string, object>, trainers: Record<string, object>, labels: string[]}} Info
 * @typedef {{archived?: string, archive_problem?: string, archive_waiting?: string}} LabelInfo
 * @typedef {{clicks?: Record<string, number[][]>, extremes?: Record<string, number[][]>, curves?: number[][][],
 *   label?: string|null, roi?: number[]|null, start?: string, size?: number, reset?: boolean}} Prompt clicks and
 *   extreme points by name; all in voxel indices; `start` is a packed mask in base64; `size` asks for an answer larger
 *   (1, 2, …) or smaller (-1, -2, …) than the likeliest
 * @typedef {{interaction: {onto: string|null, mask: string}, label_names: Record<string, number>,
 *   latencies: {total: number}, size?: number, smaller?: number, larger?: number}} Params
 * @typedef {{info: {label_info?: {name: string}[], looked_for?: string[]}, label_names: Record<string, number>|null,
 *   number: number}} LabelParams `number` is the revision's
 * @typedef {{number: number, ts: number, user: string}} Revision `ts` is Unix time
 * @typedef {{id: string, kind?: string, status: string, details?: string[],
 *   progress?: {epoch?: number, epochs?: number, metric?: number|null, seconds_left?: number|null}|null}} Job
 */

/** This program's id among those of one user. */
export const CLIENT = 'ohif';

const KEY = 'rayapp-key';
const ATTEMPTS = 4; // of an answer that breaks off
const BUSY = 503;

/** @param {number} milliseconds */
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

/**
 * Path of one of the server's routes, which `app-config.js` lists by name.
 *
 * @param {string} route
 * @param {Record<string, string>} values of the parameters in the path
 */
const path = (route, values = {}) =>
  window.config.rayapp.routes[route].replace(/{(\w+)}/g, (_, name) => encodeURIComponent(values[name]));

/** A failed request; `status` is 0 when there was no answer. */
export class Refused extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The text of something that was thrown. @param {unknown} error */
export const reason = error => (error instanceof Error ? error.message : String(error));

/** The access token, kept for this tab. */
export const keys = {
  needed: () => Boolean(window.config?.rayapp?.keys),
  get: () => sessionStorage.getItem(KEY),
  set: (/** @type {string} */ key) => sessionStorage.setItem(KEY, key),
  /** @returns {Record<string, string>} */
  header: () => (keys.get() ? { Authorization: `Bearer ${keys.get()}` } : {}),
};

/**
 * @param {string} method
 * @param {string} address
 * @param {{query?: Record<string, string|number|undefined>, json?: object, form?: FormData, signal?: AbortSignal,
 *   condition?: Record<string, string>}} options `condition` headers name the revision that a change is made from, or the
 *   last event that was received
 */
async function ask(method, address, { query = {}, json, form, signal, condition = {} } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  const url = `${address}${search.size ? `?${search}` : ''}`;
  const headers = { ...keys.header(), ...condition, ...(json ? { 'Content-Type': 'application/json' } : {}) };
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: json ? JSON.stringify(json) : form });
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    throw new Refused(0, PROBLEMS.serverAway);
  }
  if (answer.ok) {
    return answer;
  }
  const detail = (await answer.json().catch(() => ({}))).detail;
  throw new Refused(answer.status, typeof detail === 'string' ? detail : PROBLEMS.status(answer.status));
}

/**
 * The JSON of an answer.
 *
 * @param {string} method
 * @param {string} address
 * @param {Parameters<typeof ask>[2]} options
 */
const askJson = async (method, address, options = {}) => (await ask(method, address, options)).json();

/**
 * The params and the mask of an answer.
 *
 * @template [P=Params]
 * @param {Response} answer
 * @param {Mask|null} held the mask that the changes may apply to
 * @returns {Promise<{params: P, mask: Mask}>}
 */
async function masked(answer, held = null) {
  const params = JSON.parse(answer.headers.get(window.config.rayapp.paramsHeader) ?? '{}');
  return { params, mask: await changed(params, await answer.arrayBuffer(), held) };
}

/** @param {Params} params @param {ArrayBuffer} data @param {Mask|null} held */
function changed(params, data, held) {
  return decode(data, params.interaction && !params.interaction.onto ? null : held);
}

/** @param {object} params @param {Labels|null} label */
function form(params, label = null) {
  const body = new FormData();
  body.append('params', JSON.stringify(params));
  if (label) {
    body.append('label', new Blob([label]), 'label.bin');
  }
  return body;
}

/** @returns {Promise<Info>} */
export const info = () => askJson('GET', path('info'));

/** @param {string} series @returns {Promise<Image>} */
export const imageOfSeries = series => askJson('GET', path('viewer_image'), { query: { series } });

/** @param {string} id @returns {Promise<Image>} */
export const image = id => askJson('GET', path('viewer_image'), { query: { image: id } });

/**
 * A saved label on its image's grid.
 *
 * @param {string} id
 * @param {string} tag
 * @param {number} [revision] number of an earlier one
 * @returns {Promise<{params: LabelParams, mask: Mask}>}
 */
export const label = async (id, tag, revision = undefined) =>
  masked(await ask('GET', path('viewer_label'), { query: { image: id, tag, revision } }));

/** The saved states of a label, oldest first. @param {string} id @param {string} tag @returns {Promise<Revision[]>} */
export const revisions = (id, tag) => askJson('GET', path('label_revisions'), { query: { label: id, tag } });

/** @param {string} id @param {string} tag @returns {Promise<LabelInfo>} */
export const labelInfo = (id, tag) => askJson('GET', path('label_info'), { query: { label: id, tag } });

/** Reach the studies' source. Throws what keeps it from answering. */
export const studies = () => ask('GET', `${window.config.dataSources[0].configuration.qidoRoot}/studies?limit=1`);

/**
 * @param {string} strategy
 * @param {object} params
 * @returns {Promise<{id: string}>} with numbers that explain the choice
 */
export const next = (strategy, params) =>
  askJson('POST', path('next', { strategy }), { json: params });

/**
 * Run a model.
 *
 * @param {string} model
 * @param {string} id
 * @param {object} params
 * @param {Labels|null} label a label map, i fastest, as its input
 */
export const infer = async (model, id, params, label = null) => {
  const query = { image: id, output: 'box' };
  return masked(await ask('POST', path('infer', { model }), { query, form: form(params, label) }));
};

/**
 * Save a label map as final.
 *
 * @param {string} id
 * @param {Labels} labels i fastest
 * @param {object} params
 * @param {number} base number of the revision that it was made from, 0 for none
 * @returns {Promise<number>} that of the new revision
 * @throws {Refused} 409 if somebody else saved since
 */
export async function save(id, labels, params, base) {
  /** @type {Record<string, string>} */
  const condition = base ? { 'If-Match': `"${base}"` } : { 'If-None-Match': '*' };
  const answer = await ask('PUT', path('label'), { query: { image: id }, form: form(params, labels), condition });
  await answer.arrayBuffer();
  return Number((answer.headers.get('ETag') ?? '').replace(/\D/g, ''));
}

/** The caller's newest draft that is not saved yet. @param {string} id @returns {Promise<import('./history.mjs').Kept|null>} */
export const draft = id => askJson('GET', path('viewer_draft'), { query: { image: id } });

/** @param {string} id @param {string} key of the draft @param {object[]} entries its changes */
export const keepDraft = (id, key, entries) =>
  ask('POST', path('viewer_draft'), { json: { image: id, draft: key, client_id: CLIENT, entries } });

/**
 * The levels of a scoring method's uncertainty map, i fastest: 255 where all structures are equally likely.
 *
 * @param {string} method
 * @param {string} id
 */
export async function uncertainty(method, id) {
  const answer = await ask('GET', path('uncertainty', { method }), { query: { image: id } });
  const packed = new Blob([await answer.arrayBuffer()]);
  const file = await new Response(packed.stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
  const header = new DataView(file); // NIfTI-1
  if (header.getInt16(70, true) !== 2) {
    throw new Error(PROBLEMS.uncertaintyType);
  }
  return new Uint8Array(file, header.getFloat32(108, true));
}

/**
 * @param {string} method
 * @param {string} id
 * @returns {Promise<{i: number[], j: number[], k: number[]}>} most uncertain first
 */
export const uncertainSlices = (method, id) =>
  askJson('GET', path('uncertain_slices', { method }), { query: { image: id } });

/** @returns {Promise<Job[]>} */
export const jobs = () => askJson('GET', path('jobs'));

/** @param {string} model @returns {Promise<Job>} */
export const train = model => askJson('POST', path('train_model', { model }), { json: {} });

/** @param {string} job */
export const stop = job => askJson('DELETE', path('job', { job_id: job }));

/**
 * A job at each change, until it is over.
 *
 * @param {string} job
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Job>}
 */
export async function* changes(job, signal) {
  for await (const { data } of events(await ask('GET', path('job_events', { job_id: job }), { signal }))) {
    yield data;
  }
}

/**
 * The Server-Sent Events of an answer. EventSource could not send the access token.
 *
 * @param {Response} answer
 * @returns {AsyncGenerator<{kind: string, data: any, id: string}>} `id` is '' for an event without
 */
async function* events(answer) {
  let rest = '';
  for await (const text of texts(answer)) {
    const complete = (rest + text).split('\n\n');
    rest = complete.pop() ?? '';
    for (const event of complete) {
      const fields = Object.fromEntries(
        event.split('\n').map(line => [line.split(':', 1)[0], line.replace(/^\w*: ?/, '')])
      );
      if (fields.data) {
        yield { kind: fields.event, data: JSON.parse(fields.data), id: fields.id ?? '' };
      }
    }
  }
}

/** @param {Response} answer @returns {AsyncGenerator<string>} */
async function* texts(answer) {
  const decoder = new TextDecoder();
  const reader = answer.body?.getReader();
  for (let piece = await reader?.read(); piece && !piece.done; piece = await reader?.read()) {
    yield decoder.decode(piece.value, { stream: true });
  }
}

/** An image worked on prompt by prompt. Calls must not overlap. */
export class Interaction {
  /** @param {string} model @param {string} image */
  static async open(model, image) {
    const { id } = await askJson('POST', path('interactions'), { json: { model, image, client_id: CLIENT } });
    return new Interaction(id, model);
  }

  /** @param {string} id @param {string} model */
  constructor(id, model) {
    this.id = id;
    this.model = model;
    /** @type {number[]|null} */
    this.box = null; // as the server knows it
    /** @type {Mask|null} */
    this.mask = null; // the model's current mask
    this.token = '';
  }

  /**
   * Add a prompt and yield its masks, each better than the one before. An answer that breaks off is gone on with behind
   * its last mask: the prompt, with its request id, counts once.
   *
   * @param {Prompt} prompt
   * @param {AbortSignal} signal
   */
  async *stream(prompt, signal) {
    const { end, problem } = window.config.rayapp.streamEvents;
    const json = this.#step(prompt);
    for (let failures = 0, last = ''; failures < ATTEMPTS; await pause(++failures * 1000)) {
      try {
        /** @type {Record<string, string>} */
        const condition = last ? { 'Last-Event-ID': last } : {};
        const answer = await ask('POST', this.#path('interaction_stream'), { json, signal, condition });
        for await (const { kind, data, id } of events(answer)) {
          if (kind === end) {
            return;
          }
          if (kind === problem) {
            throw new Refused(data.status, data.detail);
          }
          [failures, last] = [0, id];
          yield this.#taken({ params: data.params, mask: await changed(data.params, fromText(data.mask), this.mask) });
        }
      } catch (error) {
        if (signal.aborted || !last || (error instanceof Refused && error.status && error.status !== BUSY)) {
          throw error;
        }
      }
    }
    throw new Refused(0, PROBLEMS.brokenOff);
  }

  /** Undo or redo the last prompt. @param {'undo'|'redo'} kind */
  async turn(kind) {
    const answer = await ask('POST', this.#path(`interaction_${kind}`), { json: this.#step({}) });
    return this.#taken(await masked(answer, this.mask));
  }

  /** @param {string} route */
  #path(route) {
    return path(route, { interaction_id: this.id });
  }

  /** @param {Prompt} prompt */
  #step(prompt) {
    return { ...prompt, client_id: CLIENT, onto: this.token, request: hex(16) };
  }

  /** @param {{params: Params, mask: Mask}} answer */
  #taken({ params, mask }) {
    this.mask = mask;
    this.token = params.interaction.mask;
    return { params, mask };
  }
}
