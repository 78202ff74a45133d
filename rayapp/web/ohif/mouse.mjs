/** What the first mouse button does: OHIF's own, or points, a box, a structure's ends, a curve, strokes. */

import * as curves from './curves.mjs';
import * as points from './points.mjs';
import * as strokes from './strokes.mjs';
import { groupsOf } from './tools.mjs';

const ENDS = 6; // outermost points of a structure
const TOOLS = {
  foreground: points.TOOL,
  background: points.TOOL,
  corner: points.TOOL,
  extreme: points.TOOL,
  curve: curves.TOOL,
  'stroke-on': strokes.TOOL,
  'stroke-off': strokes.TOOL,
};
export const MODES = Object.keys(TOOLS);

export class Mouse {
  /** @param placed is told what was pointed at, and the marks of it: see `read` */
  constructor(toolGroupService, placed) {
    this.groups = toolGroupService;
    this.mode = null;
    this.gathered = []; // corners of a box, or ends: {voxel, dot}
    for (const tool of [points, curves, strokes]) {
      tool.install(toolGroupService);
    }
    this.ends = [points.TOOL, curves.TOOL].map(tool => points.listen(tool, placed));
  }

  close() {
    this.ends.forEach(end => end());
  }

  /** Let it do this from now on; null: what OHIF's does. */
  use(mode) {
    this.mode = mode;
    this.forget();
    const { Enums, WindowLevelTool } = window.cornerstoneTools;
    const tool = TOOLS[mode] ?? WindowLevelTool.toolName;
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

  /** Let go of a box or ends that were begun. */
  forget() {
    this.gathered.forEach(({ dot }) => points.remove(dot));
    this.gathered = [];
  }

  /**
   * What a mark means: `{said, dots}` for a prompt, with `name` where a structure's is to be, or `{box}`, or `{more}`,
   * which says what else is to be clicked.
   *
   * @throws {Error} if it lies outside the image
   */
  read(mark, labelmap, name) {
    if (mark.metadata.toolName === curves.TOOL) {
      const curve = curves.voxels(mark, labelmap);
      points.remove(mark);
      if (!curve || curve.length < 3) {
        throw new Error(curve ? 'that curve is too small' : 'that curve leaves the image');
      }
      return { said: { curves: [curve] }, dots: [], what: `a curve around ${name}` };
    }
    const voxel = labelmap.voxelAt(points.world(mark));
    if (!voxel) {
      throw new Error('that point lies outside the image');
    }
    const at = voxel.join(', ');
    if (this.mode === 'corner' || this.mode === 'extreme') {
      return this.#gather({ voxel, dot: mark }, at, name);
    }
    return { said: { clicks: { [name]: [voxel] } }, dots: [mark], what: `${name} at ${at}` };
  }

  #gather(one, at, name) {
    this.gathered.push(one);
    const corner = this.mode === 'corner';
    const left = (corner ? 2 : ENDS) - this.gathered.length;
    if (left) {
      return { more: corner ? `a corner at ${at}: click the opposite one, on any slice` : `an end at ${at}; ${left} more` };
    }
    const [voxels, dots] = [this.gathered.map(({ voxel }) => voxel), this.gathered.map(({ dot }) => dot)];
    if (!corner) {
      this.gathered = [];
      return { said: { extremes: { [name]: voxels } }, dots, what: `the ends of ${name}` };
    }
    this.forget();
    const pairs = [0, 1, 2].map(axis => voxels.map(voxel => voxel[axis]).sort((a, b) => a - b));
    return { box: pairs.flat(), what: `box ${pairs.map(pair => pair.join(' to ')).join(' by ')}` };
  }
}
