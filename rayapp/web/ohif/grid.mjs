/**
 * The mapping between a viewer's slices and the voxels of a server's image, exact to the voxel.
 *
 * The server's affine maps index (i, j, k) to RAS millimetres; the viewer's world is LPS. Slices are placed by their
 * positions alone, never by their order, so a voxel is the same voxel in whichever order the viewer counts.
 */

import { PROBLEMS } from './words.mjs';

/**
 * @typedef {{shape: number[], affine: number[][]}} Grid
 * @typedef {{first: number, along: number, down: number, columns: number, rows: number}} Place a slice's pixels as
 *   positions in the image's flat array (i fastest): `first` is that of its first pixel, `along` the step from one
 *   column to the next, `down` that from one row to the next
 */

const TOLERANCE = 0.05; // voxels, between a slice's corner and the centre of a voxel

/** The inverse of a (4, 4) affine, as rows. @param {number[][]} affine */
export function inverse(affine) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map(row => row.map(value => value / det));
  return rows.map(row => [...row, -(row[0] * x + row[1] * y + row[2] * z)]);
}

/**
 * The (fractional) index of a point in LPS millimetres.
 *
 * @param {number[][]} back the inverse of the image's affine
 * @param {number[]} world
 */
export function indexOf(back, [l, p, s]) {
  return back.map(row => -row[0] * l - row[1] * p + row[2] * s + row[3]);
}

/**
 * The voxel at a point in LPS millimetres, or null outside the image.
 *
 * @param {number[][]} back the inverse of the image's affine
 * @param {number[]} shape
 * @param {number[]} world
 */
export function voxelOf(back, shape, world) {
  const voxel = indexOf(back, world).map(Math.round);
  return voxel.every((value, axis) => value >= 0 && value < shape[axis]) ? voxel : null;
}

/**
 * The (fractional) index of a point in LPS millimetres, or null outside the image, which ends half a voxel beyond the
 * centres of its outermost voxels.
 *
 * @param {number[][]} back the inverse of the image's affine
 * @param {number[]} shape
 * @param {number[]} world
 */
export function indexInside(back, shape, world) {
  const index = indexOf(back, world);
  return index.every((value, axis) => value >= -0.5 && value <= shape[axis] - 0.5) ? index : null;
}

/**
 * The place of each slice in the image.
 *
 * @param {ImagePlane[]} planes
 * @param {Grid} image
 * @returns {Place[]}
 * @throws {Error} if the slices are not exactly those of the image
 */
export function placed(planes, { shape, affine }) {
  const back = inverse(affine);
  const strides = [1, shape[0], shape[0] * shape[1]];
  const places = planes.map(plane => {
    const move = (/** @type {number} */ columns, /** @type {number} */ rows) =>
      plane.imagePositionPatient.map(
        (value, axis) =>
          value +
          columns * plane.columnPixelSpacing * plane.rowCosines[axis] +
          rows * plane.rowPixelSpacing * plane.columnCosines[axis]
      );
    const corner = whole(indexOf(back, move(0, 0)));
    const last = whole(indexOf(back, move(plane.columns - 1, plane.rows - 1)));
    const [right, below] = [move(plane.columns - 1, 0), move(0, plane.rows - 1)].map(at => whole(indexOf(back, at)));
    if ([corner, last].some(voxel => voxel.some((value, axis) => value < 0 || value >= shape[axis]))) {
      throw new Error(PROBLEMS.sliceOutside);
    }
    const flat = (/** @type {number[]} */ voxel) => voxel.reduce((sum, value, axis) => sum + value * strides[axis], 0);
    const step = (/** @type {number[]} */ end, /** @type {number} */ count) =>
      count > 1 ? (flat(end) - flat(corner)) / (count - 1) : 0;
    const [along, down] = [step(right, plane.columns), step(below, plane.rows)];
    if (![along, down].every(value => value === 0 || strides.includes(Math.abs(value)))) {
      throw new Error(PROBLEMS.sliceTurned);
    }
    return { first: flat(corner), along, down, columns: plane.columns, rows: plane.rows };
  });
  const pixels = places.reduce((sum, place) => sum + place.rows * place.columns, 0);
  const voxels = shape[0] * shape[1] * shape[2];
  if (pixels !== voxels || new Set(places.map(place => place.first)).size !== places.length) {
    throw new Error(PROBLEMS.sliceCount(pixels, voxels));
  }
  return places;
}

/** @param {number[]} index */
function whole(index) {
  const rounded = index.map(Math.round);
  if (index.some((value, axis) => !(Math.abs(value - rounded[axis]) <= TOLERANCE))) {
    throw new Error(PROBLEMS.sliceOffGrid);
  }
  return rounded;
}

/**
 * The number of the slice that holds a voxel.
 *
 * @param {Place[]} places
 * @param {number[]} shape
 * @param {number[]} voxel
 */
export function sliceWith(places, [width, height], [i, j, k]) {
  const flat = i + width * (j + height * k);
  return places.findIndex(({ first, along, down, columns, rows }) => {
    for (let row = 0; row < rows; row++) {
      const column = along ? (flat - first - row * down) / along : flat === first + row * down ? 0 : -1;
      if (Number.isInteger(column) && column >= 0 && column < columns) {
        return true;
      }
    }
    return false;
  });
}

/**
 * Write a flat label map into the slices' pixels.
 *
 * @param {Labels} labels
 * @param {Place[]} places
 * @param {Labels[]} slices
 */
export function scatter(labels, places, slices) {
  each(places, (number, pixel, voxel, along, columns) => {
    const slice = slices[number];
    if (along === 1) {
      slice.set(labels.subarray(voxel, voxel + columns), pixel);
      return;
    }
    for (let column = 0; column < columns; column++, voxel += along) {
      slice[pixel + column] = labels[voxel];
    }
  });
}

/**
 * Read the slices' pixels into a flat label map.
 *
 * @param {Labels[]} slices
 * @param {Place[]} places
 * @param {Labels} labels
 */
export function gather(slices, places, labels) {
  each(places, (number, pixel, voxel, along, columns) => {
    const slice = slices[number];
    if (along === 1) {
      labels.set(slice.subarray(pixel, pixel + columns), voxel);
      return;
    }
    for (let column = 0; column < columns; column++, voxel += along) {
      labels[voxel] = slice[pixel + column];
    }
  });
}

/**
 * Visit the slices' rows: the slice, its pixel and the voxel at which the row begins, the step to the next voxel, and
 * the number of columns.
 *
 * @param {Place[]} places
 * @param {(number: number, pixel: number, voxel: number, along: number, columns: number) => void} visit
 */
function each(places, visit) {
  places.forEach(({ first, along, down, columns, rows }, number) => {
    for (let row = 0; row < rows; row++) {
      visit(number, row * columns, first + row * down, along, columns);
    }
  });
}
