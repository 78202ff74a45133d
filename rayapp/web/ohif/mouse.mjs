/** The action of the primary mouse button: OHIF's own, or points, a box, extreme points, a closed curve, strokes. */

import * as curves from './curves.mjs';
import * as points from './points.mjs';
import * as strokes from './strokes.mjs';
import { GROUPS, groupsOf } from './tools.mjs';
import { PROBLEMS, says } from './words.mjs';

/**
 * @typedef {import('./labelmap.mjs').Labelmap} Labelmap
 * @typedef {{toolGroupId: string, toolName: string, toolBindingsOptions?: {bindings?: {mouseButton: number, modifierKey?: number}[]}}} Activated
 */

const EXTREMES = 6;
const TOOLS = {
  foreground: points.TOOL,
  background: points.TOOL,
  corner: points.TOOL,
  extreme: points.TOOL,
  curve: curves.TOOL,
  'stroke-on': strokes.TOOL,
  'stroke-off': strokes.TOOL,
};

/** @typedef {keyof typeof TOOLS} MouseMode */
export const MODES = /** @type {MouseMode[]} */ (Object.keys(TOOLS));

/**
 * @typedef {{prompt: import('./server.mjs').Prompt, points: Annotation[], what: string}} Marked a prompt, and its
 *   points on the screen
 * @typedef {{box: number[], what: string}} Boxed
 * @typedef {{more: string}} Unfinished says which point to click next
 */

export class Mouse {
  /**
   * @param {ToolGroupService} service
   * @param {(mark: Annotation) => void} marked is called with each mark, for `read`
   * @param {() => void} left is called when another tool than that of the mode was taken
   */
  constructor(service, marked, left) {
    this.groups = service;
    /** @type {MouseMode|null} */
    this.mode = null;
    /** @type {{voxel: number[], point: Annotation}[]} */
    this.gathered = []; // corners of a box, or extreme points
    this.stops = [points.TOOL, curves.TOOL].map(tool => points.listen(tool, marked));
    this.stops.push(this.#watch(left));
  }

  /** @param {() => void} left */
  #watch(left) {
    const { eventTarget } = window.cornerstone;
    const { Events, MouseBindings } = window.cornerstoneTools.Enums;
    const activated = (/** @type {Event} */ event) => {
      const { toolGroupId, toolName, toolBindingsOptions } = /** @type {CustomEvent<Activated>} */ (event).detail;
      const bindings = toolBindingsOptions?.bindings ?? [];
      const primary = bindings.some(one => one.mouseButton === MouseBindings.Primary && !one.modifierKey);
      if (this.mode && primary && GROUPS.includes(toolGroupId) && toolName !== TOOLS[this.mode]) {
        this.mode = null;
        this.forget();
        left();
      }
    };
    eventTarget.addEventListener(Events.TOOL_ACTIVATED, activated);
    return () => eventTarget.removeEventListener(Events.TOOL_ACTIVATED, activated);
  }

  close() {
    this.stops.forEach(stop => stop());
  }

  /** Switch to a mode; null: OHIF's window level tool. @param {MouseMode|null} mode */
  use(mode) {
    this.mode = mode;
    this.forget();
    [points, curves, strokes].forEach(tool => tool.install(this.groups)); // which OHIF may have made since
    const { Enums, WindowLevelTool } = window.cornerstoneTools;
    const tool = mode ? TOOLS[mode] : WindowLevelTool.toolName;
    for (const group of groupsOf(this.groups)) {
      if (!group.hasTool(tool)) {
        continue;
      }
      const active = group.getActivePrimaryMouseButtonTool();
      if (active && active !== tool) {
        group.setToolPassive(active);
      }
      group.setToolActive(tool, { bindings: [{ mouseButton: Enums.MouseBindings.Primary }] });
    }
  }

  /** Discard an unfinished box or unfinished extreme points. */
  forget() {
    this.gathered.forEach(({ point }) => points.remove(point));
    this.gathered = [];
  }

  /**
   * The meaning of a mark.
   *
   * @param {Annotation} mark
   * @param {MouseMode|null} mode in which it was made
   * @param {Labelmap} labelmap
   * @param {string} name under which the model takes the structure, or the background
   * @param {string} said what the reader calls it
   * @returns {Marked|Boxed|Unfinished}
   * @throws {Error} if the mark lies outside the image
   */
  read(mark, mode, labelmap, name, said) {
    if (mark.metadata.toolName === curves.TOOL) {
      const curve = curves.outline(mark, labelmap);
      points.remove(mark);
      if (!curve || curve.length < 3) {
        throw new Error(curve ? PROBLEMS.curveTooSmall : PROBLEMS.curveOutside);
      }
      return { prompt: { curves: [curve] }, points: [], what: says.curve(said) };
    }
    const voxel = labelmap.voxelAt(points.world(mark));
    if (!voxel) {
      throw new Error(PROBLEMS.pointOutside);
    }
    if (mode === 'corner' || mode === 'extreme') {
      return this.#gather(voxel, mark, mode, name, said);
    }
    return { prompt: { clicks: { [name]: [voxel] } }, points: [mark], what: says.point(said, voxel) };
  }

  /**
   * @param {number[]} voxel
   * @param {Annotation} point
   * @param {MouseMode} mode
   * @param {string} name
   * @param {string} said
   * @returns {Marked|Boxed|Unfinished}
   */
  #gather(voxel, point, mode, name, said) {
    this.gathered.push({ voxel, point });
    const corner = mode === 'corner';
    const left = (corner ? 2 : EXTREMES) - this.gathered.length;
    if (left) {
      return { more: corner ? says.corner(voxel) : says.extreme(voxel, left) };
    }
    const voxels = this.gathered.map(one => one.voxel);
    const marks = this.gathered.map(one => one.point);
    if (!corner) {
      this.gathered = [];
      return { prompt: { extremes: { [name]: voxels } }, points: marks, what: says.extremes(said) };
    }
    this.forget();
    const pairs = [0, 1, 2].map(axis => voxels.map(one => one[axis]).sort((a, b) => a - b));
    return { box: pairs.flat(), what: says.box(pairs) };
  }
}
