/** What the panel asks of the server that served it. */

import { decode } from './mask.mjs';

const KEY = 'rayapp-key';

/** An answer that is no success: `status` is 0 when none came. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const keys = {
  needed: () => Boolean(window.config?.rayapp?.keys),
  get: () => sessionStorage.getItem(KEY),
  set: key => sessionStorage.setItem(KEY, key),
  header: () => (keys.get() ? { Authorization: `Bearer ${keys.get()}` } : {}),
};

async function ask(method, path, { query = {}, json, form, signal } = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined));
  const url = `${path}${asked.size ? `?${asked}` : ''}`;
  const headers = { ...keys.header(), ...(json ? { 'Content-Type': 'application/json' } : {}) };
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: json ? JSON.stringify(json) : form });
  } catch {
    throw new Refused(0, 'the server does not answer: is it running?');
  }
  if (answer.ok) {
    return answer;
  }
  const detail = (await answer.json().catch(() => ({}))).detail;
  throw new Refused(answer.status, typeof detail === 'string' ? detail : `the server answered ${answer.status}`);
}

const read = answer => answer.json();

/** Params and the mask of an answer; `held` is the mask that the changes may go onto. */
async function masked(answer, held = null) {
  const params = JSON.parse(answer.headers.get('X-Rayapp-Params') ?? '{}');
  const onto = params.interaction && !params.interaction.onto ? null : held;
  return { params, mask: await decode(await answer.arrayBuffer(), onto) };
}

function form(params, label = null) {
  const made = new FormData();
  made.append('params', JSON.stringify(params));
  if (label) {
    made.append('label', new Blob([label]), 'label.bin');
  }
  return made;
}

export const info = () => ask('GET', '/info/').then(read);
export const imageOfSeries = series => ask('GET', '/viewer/image', { query: { series } }).then(read);
export const image = id => ask('GET', '/viewer/image', { query: { image: id } }).then(read);
export const label = (id, tag) => ask('GET', '/viewer/label', { query: { image: id, tag } }).then(masked);
export const next = (strategy, params) =>
  ask('POST', `/activelearning/${encodeURIComponent(strategy)}`, { json: params }).then(read);

/** Run a model; `label`, if there is one, is a flat map of bytes, i fastest, that it starts from. */
export const infer = (model, id, params, label = null) =>
  ask('POST', `/infer/${encodeURIComponent(model)}`, {
    query: { image: id, output: 'box' },
    form: form(params, label),
  }).then(answer => masked(answer));

/** Save a flat label map of bytes, i fastest. */
export const save = (id, labels, params) =>
  ask('PUT', '/datastore/label', { query: { image: id }, form: form(params, labels) }).then(read);

/** The levels of a scoring method's map, i fastest: 255 where all structures are as likely. */
export async function uncertainty(method, id) {
  const path = `/scoring/${encodeURIComponent(method)}/uncertainty`;
  const answer = await ask('GET', path, { query: { image: id } });
  const stream = answer.body.pipeThrough(new DecompressionStream('gzip'));
  const file = await new Response(stream).arrayBuffer();
  const header = new DataView(file); // NIfTI-1
  if (header.getInt16(70, true) !== 2) {
    throw new Error('the uncertainty map is not of bytes');
  }
  return new Uint8Array(file, header.getFloat32(108, true));
}

export const uncertainSlices = (method, id) =>
  ask('GET', `/scoring/${encodeURIComponent(method)}/slices`, { query: { image: id } }).then(read);

export const jobs = () => ask('GET', '/jobs').then(read);
export const train = model => ask('POST', `/train/${encodeURIComponent(model)}`, { json: {} }).then(read);
export const stop = job => ask('DELETE', `/jobs/${encodeURIComponent(job)}`).then(read);

/** A job at each change, until it is over: Server-Sent Events, which EventSource could not ask for with a key. */
export async function* changes(job, signal) {
  const answer = await ask('GET', `/jobs/${encodeURIComponent(job)}/events`, { signal });
  let rest = '';
  for await (const text of pieces(answer.body.pipeThrough(new TextDecoderStream()))) {
    const events = (rest + text).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      const line = event.split('\n').find(one => one.startsWith('data: '));
      if (line) {
        yield JSON.parse(line.slice('data: '.length));
      }
    }
  }
}

async function* pieces(stream) {
  const reader = stream.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    yield piece.value;
  }
}

/** An image worked on prompt by prompt; `mask` is the model's mask as it stands. Calls must not overlap. */
export class Interaction {
  static async open(model, id, client) {
    const opened = await ask('POST', '/interactions', { json: { model, image: id, client_id: client } }).then(read);
    return new Interaction(opened.id, model);
  }

  constructor(id, model) {
    this.id = id;
    this.model = model;
    this.mask = null;
    this.token = '';
  }

  prompt(said) {
    return this.#turn('prompts', said);
  }

  undo() {
    return this.#turn('undo', {});
  }

  async #turn(kind, said) {
    const json = { ...said, onto: this.token, request: crypto.randomUUID() };
    const answer = await ask('POST', `/interactions/${encodeURIComponent(this.id)}/${kind}`, { json });
    const { params, mask } = await masked(answer, this.mask);
    this.mask = mask;
    this.token = params.interaction.mask;
    return { params, mask };
  }
}
