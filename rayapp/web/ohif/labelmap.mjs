/**
 * The viewer's labelmap of one image: an OHIF segmentation, read and written as a flat array in the image's order.
 * Uses `window.cornerstone` and `window.cornerstoneTools` of the OHIF version that it is written for.
 */

import { gather, indexInside, inverse, placed, scatter, sliceWith, voxelOf } from './grid.mjs';
import { hex } from './random.mjs';
import { PROBLEMS, says } from './words.mjs';

/**
 * @typedef {{value: number, label: string, colour: Colour}} Segment
 * @typedef {import('./grid.mjs').Grid & {image: string, study: string, series: string, labels: string[],
 *   not_storable: string}} Image an image as `/viewer/image` describes it; `labels` are its tags
 */

/** @type {Colour[]} */
export const COLOURS = [
  [214, 96, 77],
  [67, 147, 195],
  [127, 188, 65],
  [244, 165, 58],
  [153, 112, 193],
  [64, 176, 166],
  [222, 119, 174],
  [166, 118, 29],
];

/** The colour of a structure's segment. @param {number} segment from 1 */
export const colour = segment => COLOURS[(segment - 1) % COLOURS.length];

export class Labelmap {
  /**
   * @param {Services} services OHIF's
   * @param {DisplaySet} displaySet the series that is shown
   * @param {Image} image
   * @param {Segment[]} segments
   * @param {string} what distinguishes the labelmaps of one image
   * @param {Segment[]} helpers further values, which are segments only once they are painted: what is no segment has no
   *   colour on the screen
   * @throws {Error} if the viewer's slices are not those of the image
   */
  constructor(services, displaySet, image, segments, what = 'label', helpers = []) {
    const planes = displaySet.imageIds.map(id => window.cornerstone.metaData.get('imagePlaneModule', id));
    this.services = services;
    this.displaySet = displaySet;
    this.image = image;
    this.segments = segments;
    this.helpers = helpers;
    this.planes = planes;
    this.places = placed(planes, image);
    this.back = inverse(image.affine);
    this.id = ''; // of OHIF's segmentation
    this.what = what;
    /** @type {Promise<void>|null} */
    this.pending = null;
  }

  /** The voxel at a point in LPS millimetres, or null outside the image. @param {Point3} world */
  voxelAt(world) {
    return voxelOf(this.back, this.image.shape, world);
  }

  /** The (fractional) index of a point in LPS millimetres, or null outside the image. @param {Point3} world */
  indexAt(world) {
    return indexInside(this.back, this.image.shape, world);
  }

  /**
   * The centre of a voxel in LPS millimetres, and the slice that shows it.
   *
   * @param {number[]} voxel
   * @returns {{world: Point3, plane: ImagePlane, imageId: string}}
   */
  sliceAt(voxel) {
    const [r, a, s] = this.image.affine.map(row => row[3] + voxel.reduce((sum, at, axis) => sum + at * row[axis], 0));
    const at = sliceWith(this.places, this.image.shape, voxel);
    return { world: [-r, -a, s], plane: this.planes[at], imageId: this.displaySet.imageIds[at] };
  }

  /** Number of voxels. */
  get size() {
    return this.image.shape.reduce((product, n) => product * n, 1);
  }

  /** False if the viewer dropped it. */
  get there() {
    return Boolean(this.services.segmentationService.getSegmentation(this.id));
  }

  /** The labels on the screen, including manual edits. @throws {Error} if the viewer dropped the labelmap */
  get() {
    const labels = new Uint8Array(this.size);
    gather(this.#slices(), this.places, labels);
    return labels;
  }

  /** Show these labels, once it is `ready`. @param {Labels} labels */
  write(labels) {
    scatter(labels, this.places, this.#slices());
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
  }

  /** Have one more segment. @param {Segment} segment */
  add(segment) {
    this.segments.push(segment);
    if (this.there) {
      this.#addSegment(segment);
    }
  }

  /** @param {Segment} segment */
  #addSegment({ value: segmentIndex, label, colour: rgb }) {
    this.services.segmentationService.addSegment(this.id, { segmentIndex, label, color: [...rgb, 255] });
  }

  /** Make this the segment that OHIF's tools paint, here and in no other labelmap. @param {number} segment */
  select(segment) {
    const { segmentationService } = this.services;
    if (this.there) {
      this.#viewports().forEach(([id]) => this.#has(id) && segmentationService.setActiveSegmentation(id, this.id));
      const helper = this.helpers.find(({ value }) => value === segment);
      if (helper && !segmentationService.getSegmentation(this.id)?.segments[segment]) {
        this.#addSegment(helper); // with its name: OHIF would add one without
      } else {
        segmentationService.setActiveSegment(this.id, segment);
      }
    }
  }

  /** Be in the viewer, also in viewports opened since. */
  ready() {
    this.pending ??= this.#place().finally(() => (this.pending = null));
    return this.pending;
  }

  async #place() {
    const { segmentationService } = this.services;
    if (!this.there) {
      // OHIF takes a second segmentation of an id for the first one, whose colours it has dropped.
      this.id = `rayapp-${this.what}-${this.image.series}-${hex(2)}`;
      const segments = Object.fromEntries(
        this.segments.map(({ value, label }, at) => [value, { label, segmentIndex: value, active: at === 0 }])
      );
      await segmentationService.createLabelmapForDisplaySet(this.displaySet, {
        segmentationId: this.id,
        label: says.labelmap(this.image.image, this.what),
        segments,
      });
    }
    for (const [viewportId] of this.#viewports()) {
      if (!this.#has(viewportId)) {
        await segmentationService.addSegmentationRepresentation(viewportId, {
          segmentationId: this.id,
          type: window.cornerstoneTools.Enums.SegmentationRepresentations.Labelmap,
        });
        // Colours can be set only once the representation exists.
        for (const { value, colour: rgb } of [...this.segments, ...this.helpers]) {
          segmentationService.setSegmentColor(viewportId, this.id, value, [...rgb, 255]);
        }
      }
    }
  }

  /** The viewports that show the series. */
  #viewports() {
    const { viewports } = this.services.viewportGridService.getState();
    const { displaySetInstanceUID } = this.displaySet;
    return [...viewports].filter(([, viewport]) => viewport.displaySetInstanceUIDs?.includes(displaySetInstanceUID));
  }

  /** @param {string} viewportId */
  #has(viewportId) {
    const { segmentationService } = this.services;
    return segmentationService.getSegmentationRepresentations(viewportId).some(one => one.segmentationId === this.id);
  }

  /** Remove it from the viewer. */
  remove() {
    if (this.there) {
      this.services.segmentationService.remove(this.id);
    }
  }

  #slices() {
    const held = this.services.segmentationService.getSegmentation(this.id);
    const slices = held?.representationData.Labelmap.imageIds.map(id => window.cornerstone.cache.getImage(id));
    if (!slices?.every(slice => slice)) {
      throw new Error(PROBLEMS.labelmapGone);
    }
    return slices.map(slice => /** @type {CachedImage} */ (slice).voxelManager.getScalarData());
  }
}
