/** The packed masks of rayapp.imaging.mask_codec: the changed box of a label map, as compressed bit planes. */

import { PROBLEMS } from './words.mjs';

/** @typedef {{shape: number[], labels: Labels|Uint16Array<ArrayBuffer>}} Mask labels with i fastest */

const HEAD = 46;
const MAGIC = 0x4b534d52; // "RMSK", little endian

/** @typedef {{corner: number[], size: number[]}} Box voxel indices */
/** @typedef {Box & {shape: number[], values: Labels|Uint16Array<ArrayBuffer>}} Part the voxels of a box, i fastest */

/**
 * The box of a packed mask, opened; its size is 0 if the mask changes nothing.
 *
 * @param {ArrayBuffer} data
 * @returns {Promise<Part>}
 */
export async function open(data) {
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
  const values = new (planes > 8 ? Uint16Array : Uint8Array)(size[0] * size[1] * size[2]);
  if (planes > 0) {
    unpack(await piped(new Uint8Array(data, HEAD), new DecompressionStream('deflate')), planes, values);
  }
  return { shape, corner, size, values };
}

/**
 * The label map: a copy of `onto` (null: zeros) with the changed box replaced.
 *
 * @param {ArrayBuffer} data
 * @param {Mask|null} onto
 * @returns {Promise<Mask>}
 */
export async function decode(data, onto = null) {
  const part = await open(data);
  const { shape } = part;
  if (onto && onto.shape.some((n, axis) => n !== shape[axis])) {
    throw new Error(PROBLEMS.maskShape);
  }
  const Kind = part.values instanceof Uint16Array || onto?.labels instanceof Uint16Array ? Uint16Array : Uint8Array;
  const labels = onto ? new Kind(onto.labels) : new Kind(shape[0] * shape[1] * shape[2]);
  paste(labels, part);
  return { shape, labels };
}

/** @param {Uint8Array} bits @param {number} planes @param {Uint8Array|Uint16Array} values */
function unpack(bits, planes, values) {
  const bytes = Math.ceil(values.length / 8);
  if (bits.length !== planes * bytes) {
    throw new Error(PROBLEMS.maskCut);
  }
  for (let voxel = 0; voxel < values.length; voxel++) {
    let value = 0;
    for (let plane = 0; plane < planes; plane++) {
      value |= ((bits[plane * bytes + (voxel >> 3)] >> (voxel & 7)) & 1) << plane;
    }
    values[voxel] = value;
  }
}

/**
 * The rows of a box: where each begins in the flat label map, and in the box's own voxels.
 *
 * @param {number[]} shape
 * @param {Box} box
 * @param {(at: number, row: number) => void} visit
 */
function rows([width, height], { corner, size }, visit) {
  let row = 0;
  for (let k = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++, row += size[0]) {
      visit(corner[0] + width * (corner[1] + j + height * (corner[2] + k)), row);
    }
  }
}

/** Replace the voxels of a box in a label map. @param {Uint8Array|Uint16Array} labels @param {Part} part */
export function paste(labels, { shape, corner, size, values }) {
  rows(shape, { corner, size }, (at, row) => labels.set(values.subarray(row, row + size[0]), at));
}

/** The voxels of a box. @param {Labels} labels @param {number[]} shape @param {Box} box @returns {Part} */
export function cut(labels, shape, box) {
  const values = new Uint8Array(box.size[0] * box.size[1] * box.size[2]);
  rows(shape, box, (at, row) => values.set(labels.subarray(at, at + box.size[0]), row));
  return { shape, ...box, values };
}

/**
 * The smallest box in which two label maps differ, null if they are equal.
 *
 * @param {Labels} one
 * @param {Labels} other
 * @param {number[]} shape
 * @returns {Box|null}
 */
export function changed(one, other, [width, height, depth]) {
  if (one === other) {
    return null;
  }
  const [low, high] = [
    [width, height, depth],
    [-1, -1, -1],
  ];
  for (let k = 0; k < depth; k++) {
    const slice = width * height * k;
    if (same(one, other, slice, width * height)) {
      continue;
    }
    [low[2], high[2]] = [Math.min(low[2], k), k];
    for (let j = 0, at = slice; j < height; j++, at += width) {
      let [first, last] = [0, width - 1];
      while (first < width && one[at + first] === other[at + first]) {
        first++;
      }
      if (first === width) {
        continue;
      }
      while (one[at + last] === other[at + last]) {
        last--;
      }
      [low[0], high[0]] = [Math.min(low[0], first), Math.max(high[0], last)];
      [low[1], high[1]] = [Math.min(low[1], j), Math.max(high[1], j)];
    }
  }
  return high[2] < 0 ? null : { corner: low, size: high.map((last, axis) => last - low[axis] + 1) };
}

/** True if so many voxels from a place on are equal. @param {Labels} one @param {Labels} other @param {number} at @param {number} count */
function same(one, other, at, count) {
  const [start, end] = [at, at + count];
  let voxel = start;
  if (one.byteOffset === 0 && other.byteOffset === 0) {
    const aligned = Math.min(Math.ceil(start / 8) * 8, end);
    const words = Math.floor((end - aligned) / 8);
    const [a, b] = [one, other].map(labels => new BigUint64Array(labels.buffer, aligned, words));
    for (let word = 0; word < words; word++) {
      if (a[word] !== b[word]) {
        return false;
      }
    }
    for (; voxel < aligned; voxel++) {
      if (one[voxel] !== other[voxel]) {
        return false;
      }
    }
    voxel = aligned + 8 * words;
  }
  for (; voxel < end; voxel++) {
    if (one[voxel] !== other[voxel]) {
      return false;
    }
  }
  return true;
}

/** A box packed. @param {Part} part of values up to 255 @returns {Promise<Uint8Array<ArrayBuffer>>} */
export async function pack({ shape, corner, size, values }) {
  let most = 0;
  values.forEach(value => (most = value > most ? value : most));
  const planes = values.length ? Math.max(1, Math.ceil(Math.log2(most + 1))) : 0;
  const bytes = Math.ceil(values.length / 8);
  const bits = new Uint8Array(planes * bytes);
  values.forEach((value, voxel) => {
    for (let plane = 0; value >> plane; plane++) {
      bits[plane * bytes + (voxel >> 3)] |= ((value >> plane) & 1) << (voxel & 7);
    }
  });
  const packed = planes ? await piped(bits, new CompressionStream('deflate')) : bits;
  const all = new Uint8Array(HEAD + packed.length);
  const view = new DataView(all.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, 1);
  view.setUint8(5, planes);
  [...shape, ...corner, ...size, packed.length].forEach((value, at) => view.setUint32(6 + 4 * at, value, true));
  all.set(packed, HEAD);
  return all;
}

/** A whole label map, i fastest, packed and in base64 for JSON. @param {number[]} shape @param {Labels} labels */
export const toText = async (shape, labels) =>
  text(await pack({ shape, corner: [0, 0, 0], size: shape, values: labels }));

/** Bytes in base64. @param {Uint8Array} bytes */
export function text(bytes) {
  let all = '';
  for (let at = 0; at < bytes.length; at += 1 << 14) {
    all += String.fromCharCode(...bytes.subarray(at, at + (1 << 14)));
  }
  return btoa(all);
}

/** The bytes of a base64 text. @param {string} text */
export const fromText = text => Uint8Array.from(atob(text), char => char.charCodeAt(0)).buffer;

/** @param {Labels} bytes @param {GenericTransformStream} through */
async function piped(bytes, through) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(through)).arrayBuffer());
}
