/** A label that the server has, as segments of the panel. */

import { BACKGROUND, over } from './meaning.mjs';
import * as server from './server.mjs';
import { UNSEEN, says } from './words.mjs';

const NOBODY_LOOKED = 255; // as rayapp.imaging.unseen has it

/**
 * @typedef {{number: number, labels: Labels, sought: string[]}} Stored number of the revision; `sought` are the
 *   structures that its annotator looked for
 */

/**
 * Read a label. Its structures are learnt, also empty ones and values without a name, so that saving keeps them.
 *
 * @param {import('./labelmap.mjs').Image} image
 * @param {string[]} names of the segments, from 1
 * @param {(name: string) => void} learn adds a name to them
 * @param {string} tag
 * @param {number} [revision] number of an earlier one; the newest by default
 * @returns {Promise<Stored>}
 */
export async function stored(image, names, learn, tag, revision) {
  const { mask, params } = await server.label(image.image, tag, revision);
  const given = named(params.label_names ?? {}, mask.labels, names);
  Object.keys(given).forEach(name => name !== BACKGROUND && learn(name));
  const blank = new Uint8Array(mask.labels.length);
  const { looked_for, label_info = [] } = params.info;
  return {
    number: params.number,
    labels: over(names, image.shape, blank, mask.labels, { names: given }),
    sought: looked_for ?? label_info.map(({ name }) => name),
  };
}

/**
 * A name for every value of a label map.
 *
 * @param {Record<string, number>} given by the label
 * @param {Uint8Array|Uint16Array} labels
 * @param {string[]} names of the segments, from 1, which a label without any names has
 */
export function named(given, labels, names) {
  const known = Object.entries(given).filter(([name]) => name !== BACKGROUND);
  const values = new Map(known.map(([name, value]) => [value, name]));
  const seen = new Uint8Array(65536);
  labels.forEach(value => (seen[value] = 1));
  for (let value = 1; value < seen.length; value++) {
    if (seen[value] && !values.has(value)) {
      const unseen = value === NOBODY_LOOKED;
      const own = known.length ? undefined : names[value - 1];
      values.set(value, unseen ? UNSEEN : own ?? says.unnamed(value));
    }
  }
  return Object.fromEntries([...values].map(([value, name]) => [name, value]));
}

/**
 * Labels as they are saved: where nobody looked has no name, but a value of its own.
 *
 * @param {string[]} names of the segments, from 1
 * @param {Labels} labels
 * @returns {Labels}
 */
export function unnamed(names, labels) {
  const unseen = names.indexOf(UNSEEN) + 1;
  return unseen ? labels.map(value => (value === unseen ? NOBODY_LOOKED : value)) : labels;
}
