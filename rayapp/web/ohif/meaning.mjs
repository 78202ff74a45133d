/** The values of a model's masks as the panel's segments, and segments as a model's values. */

export const BACKGROUND = 'background';
const SINGLE = 'deepgrow'; // the type of models of one structure, whichever the prompts are on

/**
 * @typedef {import('./server.mjs').Model} Model
 * @typedef {{names: Record<string, number>}|{only: string, slice?: number}} Meaning of a mask's values: the model's
 *   names, or the one structure, perhaps on one slice alone
 */

/** True if the model knows one structure at a time. @param {Model} model */
export const single = model => model.type === SINGLE;

/**
 * @param {Model} model
 * @param {string|null} label the active structure
 * @param {{label_names: Record<string, number>}} params of the answer
 * @param {import('./server.mjs').Prompt} prompt
 * @returns {Meaning}
 */
export function meaning(model, label, params, { clicks = {} } = {}) {
  const slice = model.dimension === 2 ? Object.values(clicks).flat().at(-1)?.[2] : undefined;
  return single(model) && label !== null ? { only: label, slice } : { names: params.label_names };
}

/**
 * A mask over earlier labels: structures that the model does not know stay where it finds none of its own.
 *
 * @param {string[]} names of the segments, from 1
 * @param {number[]} shape
 * @param {Labels} before
 * @param {Uint8Array|Uint16Array} mask
 * @param {Meaning} meant
 * @returns {Labels}
 */
export function over(names, shape, before, mask, meant) {
  const [segments, owned] = [new Uint8Array(65536), new Uint8Array(256)];
  let [first, end] = [0, before.length];
  if ('only' in meant) {
    segments.fill(names.indexOf(meant.only) + 1, 1);
    owned[segments[1]] = 1;
    if (meant.slice !== undefined) {
      const plane = shape[0] * shape[1];
      [first, end] = [meant.slice * plane, (meant.slice + 1) * plane];
    }
  } else {
    for (const [name, value] of Object.entries(meant.names)) {
      segments[value] = names.indexOf(name) + 1;
      owned[segments[value]] = 1;
    }
  }
  const labels = before.slice();
  for (let at = first; at < end; at++) {
    labels[at] = segments[mask[at]] || (owned[before[at]] ? 0 : before[at]);
  }
  return labels;
}

/**
 * What was painted since a model was asked stays over its answer.
 *
 * @param {Labels} answer
 * @param {Labels} asked the labels as they were then
 * @param {Labels} now
 */
export function painted(answer, asked, now) {
  if (asked !== now) {
    now.forEach((value, at) => (answer[at] = value === asked[at] ? answer[at] : value));
  }
  return answer;
}

/**
 * Segments as values of a model; null if there is nothing for it to start from.
 *
 * @param {string[]} names of the segments, from 1
 * @param {Model} model
 * @param {string} label the active structure
 * @param {Labels} segments
 */
export function valuesFor(names, model, label, segments) {
  const values = new Uint8Array(256);
  const named = single(model) ? [/** @type {const} */ ([label, 1])] : Object.entries(model.labels);
  for (const [name, value] of named) {
    if (name !== BACKGROUND && names.includes(name)) {
      values[names.indexOf(name) + 1] = value;
    }
  }
  const start = segments.map(segment => values[segment]);
  return start.some(value => value > 0) ? start : null;
}

/**
 * The segments of a list of structures among those of another; null if they are the same.
 *
 * @param {string[]} from
 * @param {string[]} to has all of them
 */
export function translation(from, to) {
  const table = Uint8Array.from({ length: 256 }, (_, value) => (value ? to.indexOf(from[value - 1]) + 1 : 0));
  return from.every((name, at) => to[at] === name) ? null : table;
}
