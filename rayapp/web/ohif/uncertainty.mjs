/** The uncertainty map of a scoring method: three bands over the image, and the most uncertain slices. */

import { button, element, fill, options } from './dom.mjs';
import { Labelmap } from './labelmap.mjs';
import * as server from './server.mjs';
import { BANDS as LABELS, DOING, DONE, PROBLEMS, SECTIONS, says } from './words.mjs';

/** @type {(import('./labelmap.mjs').Segment & {from: number})[]} levels of 0 to 255 from which a band begins */
const BANDS = [
  { value: 1, from: 64, label: LABELS[0], colour: [255, 237, 120] },
  { value: 2, from: 128, label: LABELS[1], colour: [255, 160, 50] },
  { value: 3, from: 192, label: LABELS[2], colour: [225, 40, 40] },
];

export class Uncertainty {
  /**
   * @param {import('./next.mjs').Run} run
   * @param {() => Labelmap} labelmap gives the panel's
   * @param {() => void} drawn is called when the bands are there, which are not to be painted in
   */
  constructor(run, labelmap, drawn) {
    this.labelmap = labelmap;
    this.drawn = drawn;
    /** @type {Labelmap|null} */
    this.shown = null;
    this.method = element('select', { name: 'scored' });
    this.node = element('div', {});
    fill(
      this.node,
      element('h3', {}, SECTIONS.uncertainty),
      this.method,
      button('uncertainty', () => run(DOING.loadingUncertainty, () => this.#toggle()))
    );
  }

  /** Offer these scoring methods. @param {string[]} methods */
  show(methods) {
    options(this.method, methods);
  }

  /** Remove the bands, because another image is opened. */
  hide() {
    this.shown?.remove();
    this.shown = null;
  }

  async #toggle() {
    if (this.shown) {
      this.hide();
      return DONE.uncertaintyHidden;
    }
    if (!this.method.value) {
      throw new Error(PROBLEMS.noScoring);
    }
    const { services, displaySet, image, size } = this.labelmap();
    const levels = await server.uncertainty(this.method.value, image.image);
    if (levels.length !== size) {
      throw new Error(PROBLEMS.uncertaintyOffGrid);
    }
    const bands = new Labelmap(services, displaySet, image, BANDS, 'uncertainty');
    await bands.ready();
    bands.write(levels.map(level => BANDS.filter(({ from }) => level >= from).length));
    this.shown = bands;
    this.drawn();
    const { k } = await server.uncertainSlices(this.method.value, image.image);
    return says.uncertainSlices(k.slice(0, 5));
  }
}
