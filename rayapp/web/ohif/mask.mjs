/** The packed masks of rayapp.imaging.mask_codec: the changed box of a label map, as compressed bit planes. */

import { PROBLEMS } from './words.mjs';

/** @typedef {{shape: number[], labels: Labels|Uint16Array<ArrayBuffer>}} Mask labels with i fastest */

const HEAD = 46;
const MAGIC = 0x4b534d52; // "RMSK", little endian

/**
 * The label map: a copy of `onto` (null: zeros) with the changed box replaced.
 *
 * @param {ArrayBuffer} data
 * @param {Mask|null} onto
 * @returns {Promise<Mask>}
 */
export async function decode(data, onto = null) {
  const view = new DataView(data);
  const planes = view.byteLength >= HEAD ? view.getUint8(5) : 99;
  if (planes > 16 || view.getUint32(0, true) !== MAGIC || view.getUint8(4) !== 1) {
    throw new Error(PROBLEMS.noMask);
  }
  const triple = (/** @type {number} */ at) => [0, 4, 8].map(step => view.getUint32(at + step, true));
  const [shape, corner, size] = [triple(6), triple(18), triple(30)];
  const length = view.getUint32(42, true);
  if (view.byteLength !== HEAD + length || corner.some((c, axis) => c + size[axis] > shape[axis])) {
    throw new Error(PROBLEMS.maskHeader);
  }
  if (onto && onto.shape.some((n, axis) => n !== shape[axis])) {
    throw new Error(PROBLEMS.maskShape);
  }
  const Kind = planes > 8 || onto?.labels instanceof Uint16Array ? Uint16Array : Uint8Array;
  const labels = onto ? new Kind(onto.labels) : new Kind(shape[0] * shape[1] * shape[2]);
  if (planes > 0) {
    const bits = await piped(new Uint8Array(data, HEAD), new DecompressionStream('deflate'));
    unpack(bits, planes, labels, { shape, corner, size });
  }
  return { shape, labels };
}

/**
 * @param {Uint8Array} bits
 * @param {number} planes
 * @param {Uint8Array|Uint16Array} labels
 * @param {{shape: number[], corner: number[], size: number[]}} box
 */
function unpack(bits, planes, labels, { shape, corner, size }) {
  const count = size[0] * size[1] * size[2];
  const bytes = Math.ceil(count / 8);
  if (bits.length !== planes * bytes) {
    throw new Error(PROBLEMS.maskCut);
  }
  let voxel = 0;
  for (let k = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++) {
      let at = corner[0] + shape[0] * (corner[1] + j + shape[1] * (corner[2] + k));
      for (let i = 0; i < size[0]; i++, voxel++, at++) {
        let value = 0;
        for (let plane = 0; plane < planes; plane++) {
          value |= ((bits[plane * bytes + (voxel >> 3)] >> (voxel & 7)) & 1) << plane;
        }
        labels[at] = value;
      }
    }
  }
}

/** A whole label map, i fastest, packed and in base64 for JSON. @param {number[]} shape @param {Labels} labels */
export async function toText(shape, labels) {
  const planes = Math.max(1, Math.ceil(Math.log2(labels.reduce((most, value) => Math.max(most, value), 0) + 1)));
  const bytes = Math.ceil(labels.length / 8);
  const bits = new Uint8Array(planes * bytes);
  labels.forEach((value, voxel) => {
    for (let plane = 0; value >> plane; plane++) {
      bits[plane * bytes + (voxel >> 3)] |= ((value >> plane) & 1) << (voxel & 7);
    }
  });
  const packed = await piped(bits, new CompressionStream('deflate'));
  const all = new Uint8Array(HEAD + packed.length);
  const view = new DataView(all.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, 1);
  view.setUint8(5, planes);
  [...shape, 0, 0, 0, ...shape, packed.length].forEach((value, at) => view.setUint32(6 + 4 * at, value, true));
  all.set(packed, HEAD);
  let text = '';
  for (let at = 0; at < all.length; at += 1 << 14) {
    text += String.fromCharCode(...all.subarray(at, at + (1 << 14)));
  }
  return btoa(text);
}

/** The bytes of a base64 text. @param {string} text */
export const fromText = text => Uint8Array.from(atob(text), char => char.charCodeAt(0)).buffer;

/** @param {Labels} bytes @param {GenericTransformStream} through */
async function piped(bytes, through) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(through)).arrayBuffer());
}
