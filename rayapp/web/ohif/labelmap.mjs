/**
 * The viewer's labelmap of one image: OHIF's segmentation on one side, a flat array in the image's order on the other.
 * Leans on `window.cornerstone` and `window.cornerstoneTools` of the OHIF that it is written for.
 */

import { gather, inverse, placed, scatter, sliceWith, voxelOf } from './grid.mjs';

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

export const colour = segment => COLOURS[(segment - 1) % COLOURS.length];

export class Labelmap {
  /**
   * @param {object} services OHIF's
   * @param {object} displaySet the series that is shown
   * @param {object} image what `/viewer/image` says of it
   * @param {{value: number, label: string, colour: number[]}[]} segments
   * @param {string} what tells the labelmaps of one image apart
   * @throws {Error} if the viewer's slices are not the image's
   */
  constructor(services, displaySet, image, segments, what = 'label') {
    const planes = displaySet.imageIds.map(id => window.cornerstone.metaData.get('imagePlaneModule', id));
    this.services = services;
    this.displaySet = displaySet;
    this.image = image;
    this.segments = segments;
    this.planes = planes;
    this.places = placed(planes, image);
    this.back = inverse(image.affine);
    this.id = `rayapp-${what}-${image.series}`;
    this.what = what;
    this.shown = null; // what was set last
  }

  /** The image's voxel at a point of the viewer's world, or null. */
  voxelAt(world) {
    return voxelOf(this.back, this.image.shape, world);
  }

  /** Where a voxel is in the viewer: its centre in the world, and the slice that shows it. */
  sliceAt(voxel) {
    const [r, a, s] = this.image.affine.map(row => row[3] + voxel.reduce((sum, at, axis) => sum + at * row[axis], 0));
    const at = sliceWith(this.places, this.image.shape, voxel);
    return { world: [-r, -a, s], plane: this.planes[at], imageId: this.displaySet.imageIds[at] };
  }

  get size() {
    return this.image.shape.reduce((product, n) => product * n, 1);
  }

  /** The segments as they are on the screen, with what was painted by hand. */
  get() {
    const labels = new Uint8Array(this.size);
    const slices = this.#slices();
    if (slices) {
      gather(slices, this.places, labels);
    }
    return labels;
  }

  /** Show these segments. */
  async set(labels) {
    await this.#exists();
    this.shown = labels;
    scatter(labels, this.places, this.#slices());
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
  }

  /** Make this the segment that OHIF's own tools paint. */
  select(segment) {
    if (this.services.segmentationService.getSegmentation(this.id)) {
      this.services.segmentationService.setActiveSegment(this.id, segment);
    }
  }

  /** Show it also in viewports that were opened later. */
  async attach() {
    const { segmentationService, viewportGridService } = this.services;
    for (const [viewportId, viewport] of viewportGridService.getState().viewports) {
      const shows = viewport.displaySetInstanceUIDs?.includes(this.displaySet.displaySetInstanceUID);
      const has = segmentationService
        .getSegmentationRepresentations(viewportId)
        .some(one => one.segmentationId === this.id);
      if (shows && !has) {
        await segmentationService.addSegmentationRepresentation(viewportId, {
          segmentationId: this.id,
          type: window.cornerstoneTools.Enums.SegmentationRepresentations.Labelmap,
        });
        // A colour can be given only to what is there.
        for (const { value, colour: rgb } of this.segments) {
          segmentationService.setSegmentColor(viewportId, this.id, value, [...rgb, 255]);
        }
      }
    }
  }

  /** Take it away. */
  remove() {
    if (this.services.segmentationService.getSegmentation(this.id)) {
      this.services.segmentationService.remove(this.id);
    }
  }

  #slices() {
    const held = this.services.segmentationService.getSegmentation(this.id);
    return held?.representationData.Labelmap.imageIds.map(id =>
      window.cornerstone.cache.getImage(id).voxelManager.getScalarData()
    );
  }

  async #exists() {
    const { segmentationService } = this.services;
    if (!segmentationService.getSegmentation(this.id)) {
      const segments = Object.fromEntries(
        this.segments.map(({ value, label }, at) => [value, { label, segmentIndex: value, active: at === 0 }])
      );
      await segmentationService.createLabelmapForDisplaySet(this.displaySet, {
        segmentationId: this.id,
        label: `${this.image.image} ${this.what}`,
        segments,
      });
    }
    await this.attach();
  }
}
