/** What the panel asks of the server that served it. */

import { decode, fromText } from './mask.mjs';

/** What the server knows this program by, among those of one user. */
export const CLIENT = 'ohif';

const KEY = 'rayapp-key';

/** Path of one of the server's routes, which `app-config.js` lists by name. */
const path = (route, values = {}) =>
  window.config.rayapp.routes[route].replace(/{(\w+)}/g, (_, name) => encodeURIComponent(values[name]));

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

async function ask(method, address, { query = {}, json, form, signal } = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined));
  const url = `${address}${asked.size ? `?${asked}` : ''}`;
  const headers = { ...keys.header(), ...(json ? { 'Content-Type': 'application/json' } : {}) };
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: json ? JSON.stringify(json) : form });
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
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
  const params = JSON.parse(answer.headers.get(window.config.rayapp.paramsHeader) ?? '{}');
  return changed(params, await answer.arrayBuffer(), held);
}

async function changed(params, data, held) {
  const onto = params.interaction && !params.interaction.onto ? null : held;
  return { params, mask: await decode(data, onto) };
}

function form(params, label = null) {
  const made = new FormData();
  made.append('params', JSON.stringify(params));
  if (label) {
    made.append('label', new Blob([label]), 'label.bin');
  }
  return made;
}

export const info = () => ask('GET', path('info')).then(read);
export const imageOfSeries = series => ask('GET', path('viewer_image'), { query: { series } }).then(read);
export const image = id => ask('GET', path('viewer_image'), { query: { image: id } }).then(read);
export const label = (id, tag) => ask('GET', path('viewer_label'), { query: { image: id, tag } }).then(masked);
export const labelInfo = (id, tag) => ask('GET', path('label_info'), { query: { label: id, tag } }).then(read);

/** Raises what keeps the studies' source from answering. */
export const studies = () => ask('GET', `${window.config.dataSources[0].configuration.qidoRoot}/studies?limit=1`);

export const next = (strategy, params) =>
  ask('POST', path('next', { strategy }), { json: params }).then(read);

/** Run a model; `label`, if there is one, is a flat map of bytes, i fastest, that it starts from. */
export const infer = (model, id, params, label = null) =>
  ask('POST', path('infer', { model }), {
    query: { image: id, output: 'box' },
    form: form(params, label),
  }).then(answer => masked(answer));

/** Save a flat label map of bytes, i fastest. */
export const save = (id, labels, params) =>
  ask('PUT', path('label'), { query: { image: id }, form: form(params, labels) }).then(read);

/** The levels of a scoring method's map, i fastest: 255 where all structures are as likely. */
export async function uncertainty(method, id) {
  const answer = await ask('GET', path('uncertainty', { method }), { query: { image: id } });
  const stream = answer.body.pipeThrough(new DecompressionStream('gzip'));
  const file = await new Response(stream).arrayBuffer();
  const header = new DataView(file); // NIfTI-1
  if (header.getInt16(70, true) !== 2) {
    throw new Error('the uncertainty map is not of bytes');
  }
  return new Uint8Array(file, header.getFloat32(108, true));
}

export const uncertainSlices = (method, id) =>
  ask('GET', path('uncertain_slices', { method }), { query: { image: id } }).then(read);

export const jobs = () => ask('GET', path('jobs')).then(read);
export const train = model => ask('POST', path('train_model', { model }), { json: {} }).then(read);
export const stop = job => ask('DELETE', path('job', { job_id: job })).then(read);

/** A job at each change, until it is over. */
export async function* changes(job, signal) {
  for await (const { data } of events(await ask('GET', path('job_events', { job_id: job }), { signal }))) {
    yield data;
  }
}

/** Server-Sent Events, which EventSource could not ask for with a key. */
async function* events(answer) {
  let rest = '';
  for await (const text of pieces(answer.body.pipeThrough(new TextDecoderStream()))) {
    const whole = (rest + text).split('\n\n');
    rest = whole.pop();
    for (const event of whole) {
      const said = Object.fromEntries(event.split('\n').map(line => [line.split(':', 1)[0], line.replace(/^\w*: ?/, '')]));
      if (said.data) {
        yield { kind: said.event, data: JSON.parse(said.data) };
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

/** The caller's interactions on an image, oldest first. */
export const interactions = image => ask('GET', path('interactions'), { query: { image } }).then(read);

/** An image worked on prompt by prompt; `mask` is the model's mask as it stands. Calls must not overlap. */
export class Interaction {
  static async open(model, image) {
    const opened = await ask('POST', path('interactions'), { json: { model, image, client_id: CLIENT } }).then(read);
    return new Interaction(opened.id, model);
  }

  constructor(id, model) {
    this.id = id;
    this.model = model;
    this.box = null; // that the server knows of
    this.mask = null;
    this.token = '';
  }

  /** Add a prompt: a mask soon, then what is better, until `signal`. */
  async *stream(said, signal) {
    const answer = await ask('POST', this.#path('interaction_stream'), { json: this.#step(said), signal });
    for await (const { kind, data } of events(answer)) {
      if (kind === 'end') {
        return;
      }
      if (kind === 'problem') {
        throw new Refused(data.status, data.detail);
      }
      yield this.#taken(await changed(data.params, fromText(data.mask), this.mask));
    }
    throw new Refused(0, 'the connection broke off before the last mask');
  }

  async undo() {
    const answer = await ask('POST', this.#path('interaction_undo'), { json: this.#step({}) });
    return this.#taken(await masked(answer, this.mask));
  }

  /** The mask as of a step of the log. */
  async at(step) {
    return this.#taken(await masked(await ask('GET', this.#path('interaction_mask'), { query: { step } })));
  }

  #path(route) {
    return path(route, { interaction_id: this.id });
  }

  #step(said) {
    return { ...said, client_id: CLIENT, onto: this.token, request: crypto.randomUUID() };
  }

  #taken({ params, mask }) {
    this.mask = mask;
    this.token = params.interaction.mask;
    return { params, mask };
  }
}
