/**
 * Where a viewer's slices lie in an image of the server, to the voxel.
 *
 * The server's affine maps index (i, j, k) to RAS millimetres; the viewer's world is LPS. Slices are placed by their
 * positions alone, never by their order, so whatever way the viewer counts, a voxel is the same voxel.
 */

const WHOLE = 0.05; // of a voxel: how far a slice's corner may lie from a voxel's centre

/** The inverse of a (4, 4) affine, as rows. */
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

/** The (fractional) index of a point in LPS millimetres; `back` is the inverse of the image's affine. */
export function indexOf(back, [l, p, s]) {
  return back.map(row => -row[0] * l - row[1] * p + row[2] * s + row[3]);
}

/** The voxel at a point in LPS millimetres, or null outside the image. */
export function voxelOf(back, shape, world) {
  const voxel = indexOf(back, world).map(Math.round);
  return voxel.every((value, axis) => value >= 0 && value < shape[axis]) ? voxel : null;
}

/**
 * Each slice's pixels as positions in the image's flat array (i fastest): `first` is that of its first pixel, `along`
 * the step from one column to the next, `down` that from one row to the next.
 *
 * @param {object[]} planes imagePlaneModules: imagePositionPatient, rowCosines, columnCosines, pixel spacings, rows, columns
 * @param {{shape: number[], affine: number[][]}} image
 * @throws {Error} if the slices are not exactly the image's
 */
export function placed(planes, { shape, affine }) {
  const back = inverse(affine);
  const strides = [1, shape[0], shape[0] * shape[1]];
  const places = planes.map(plane => {
    const move = (columns, rows) =>
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
      throw new Error('a slice lies outside the image');
    }
    const flat = voxel => voxel.reduce((sum, value, axis) => sum + value * strides[axis], 0);
    const step = (end, count) => (count > 1 ? (flat(end) - flat(corner)) / (count - 1) : 0);
    const [along, down] = [step(right, plane.columns), step(below, plane.rows)];
    if (![along, down].every(value => value === 0 || strides.includes(Math.abs(value)))) {
      throw new Error("the slices' rows and columns are not those of the image");
    }
    return { first: flat(corner), along, down, columns: plane.columns, rows: plane.rows };
  });
  const pixels = places.reduce((sum, place) => sum + place.rows * place.columns, 0);
  const voxels = shape[0] * shape[1] * shape[2];
  if (pixels !== voxels || new Set(places.map(place => place.first)).size !== places.length) {
    throw new Error(`the viewer shows ${pixels} voxels, the image has ${voxels}`);
  }
  return places;
}

function whole(index) {
  const rounded = index.map(Math.round);
  if (index.some((value, axis) => !(Math.abs(value - rounded[axis]) <= WHOLE))) {
    throw new Error("the slices do not lie on the image's voxels");
  }
  return rounded;
}

/** The number of the slice that holds a voxel. */
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

/** Write a flat label map into the slices' pixels. */
export function scatter(labels, places, slices) {
  each(places, slices, (slice, pixel, voxel) => {
    slice[pixel] = labels[voxel];
  });
}

/** Read the slices' pixels into a flat label map. */
export function gather(slices, places, labels) {
  each(places, slices, (slice, pixel, voxel) => {
    labels[voxel] = slice[pixel];
  });
}

function each(places, slices, visit) {
  places.forEach(({ first, along, down, columns, rows }, number) => {
    for (let row = 0, pixel = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, pixel++) {
        visit(slices[number], pixel, first + row * down + column * along);
      }
    }
  });
}
