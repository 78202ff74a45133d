/** The points of an image's prompts on the screen. */

import * as points from './points.mjs';

export class Dots {
  constructor() {
    /** @type {Map<string, Annotation[]>} */
    this.shown = new Map(); // by the group of the prompt's edit
  }

  /** Keep the points that a prompt's edit has put on the screen. @param {string} group @param {Annotation[]} dots */
  keep(group, dots) {
    this.shown.set(group, dots);
  }

  /**
   * Draw the points that are not on the screen.
   *
   * @param {import('./history.mjs').History} history
   * @param {import('./labelmap.mjs').Labelmap} labelmap
   * @param {(name: string, label: string|null) => Colour} colourOf of a point by the name that it was given under and
   *   the structure that was active
   */
  draw(history, labelmap, colourOf) {
    for (const { about } of history.done) {
      if (about.prompt && !this.shown.has(about.group)) {
        const { prompt, label = null, group } = about;
        this.shown.set(group, points.of(prompt, labelmap, name => colourOf(name, label)));
      }
    }
  }

  /** Take the points of one prompt off the screen. @param {string} group */
  remove(group) {
    this.shown.get(group)?.forEach(points.remove);
    this.shown.delete(group);
  }

  /** Take all points off the screen, because another series is shown. */
  hide() {
    [...this.shown.keys()].forEach(group => this.remove(group));
  }
}
