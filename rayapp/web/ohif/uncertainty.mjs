/** Where a model is unsure of the image: three bands over it, and the slices most worth looking at. */

import { element, fill, options } from './dom.mjs';
import { Labelmap } from './labelmap.mjs';
import * as server from './server.mjs';

const BANDS = [
  { value: 1, from: 64, label: 'somewhat unsure', colour: [255, 237, 120] },
  { value: 2, from: 128, label: 'unsure', colour: [255, 160, 50] },
  { value: 3, from: 192, label: 'very unsure', colour: [225, 40, 40] },
];

export class Uncertainty {
  /** @param run what does one thing of the panel's at a time; `labelmap` gives the panel's */
  constructor(run, labelmap) {
    this.labelmap = labelmap;
    this.shown = null;
    this.method = element('select', { name: 'scored' });
    const act = () => run('asking for the scores…', () => this.#toggle());
    this.node = element('div', {});
    fill(
      this.node,
      element('h3', {}, 'Uncertainty'),
      this.method,
      element('button', { name: 'uncertainty', title: 'Shift+U', onclick: act }, 'Show, hide')
    );
  }

  /** Offer these scoring methods. */
  show(methods) {
    options(this.method, methods);
  }

  /** Take the bands away, as another image is opened. */
  hide() {
    this.shown?.remove();
    this.shown = null;
  }

  async #toggle() {
    if (this.shown) {
      this.hide();
      return 'uncertainty is hidden';
    }
    if (!this.method.value) {
      throw new Error('this server scores no images');
    }
    const { services, displaySet, image } = this.labelmap();
    const levels = await server.uncertainty(this.method.value, image.image);
    if (levels.length !== image.shape.reduce((product, n) => product * n, 1)) {
      throw new Error("the scores do not lie on the image's grid");
    }
    const bands = new Labelmap(services, displaySet, image, BANDS, 'uncertainty');
    await bands.set(levels.map(level => BANDS.filter(({ from }) => level >= from).length));
    this.shown = bands;
    const { k } = await server.uncertainSlices(this.method.value, image.image);
    return `slices to look at first: ${k.slice(0, 5).join(', ')} along k`;
  }
}
