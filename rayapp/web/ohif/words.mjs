/** Every text that the panel shows, in one place. */

/**
 * @typedef {{text: string, key?: string, hint?: string}} Button `key` is pressed with Shift
 * @typedef {'again'|'segment'|'foreground'|'background'|'extreme'|'curve'|'corner'|'stroke-on'|'stroke-off'|'scribble'
 *   |'stop'|'smaller'|'larger'|'undo'|'redo'|'save'|'next'|'uncertainty'|'train'|'stop-training'|'look'|'restore'
 *   |'keep-mine'|'keep-theirs'|'start-theirs'} ButtonName
 */

/** The field for a structure that the server does not know. */
export const ADD = { text: 'Add a structure', hint: 'type its name and press Enter' };

/** The name of a structure where nobody has named one. */
export const UNNAMED = 'structure';

/** The name of what nobody looked at in a label. */
export const UNSEEN = 'not annotated';

/** The mark of a structure that was looked for. */
export const LOOKED = {
  text: '✓',
  on: (/** @type {string} */ name) => `looked for ${name}: where it is not, a training learns that it is not`,
  off: (/** @type {string} */ name) => `not looked for ${name}: a training learns nothing about it here`,
};

/** @type {Record<ButtonName, Button>} */
export const BUTTONS = {
  again: { text: 'Try again' },
  segment: { text: 'Segment', key: 'A' },
  foreground: { text: 'Include point', key: 'F', hint: 'click a voxel of the structure' },
  background: { text: 'Exclude point', key: 'B', hint: 'click a voxel outside the structure' },
  extreme: { text: 'Extreme points', key: 'P', hint: 'click the six outermost points of the structure' },
  curve: { text: 'Closed curve', key: 'C', hint: 'draw around the structure on one slice' },
  corner: { text: 'Box', key: 'R', hint: 'click two opposite corners, on any slices' },
  'stroke-on': { text: 'Foreground stroke', key: 'D', hint: 'draw on the structure' },
  'stroke-off': { text: 'Background stroke', key: 'E', hint: 'draw outside the structure' },
  scribble: { text: 'Segment from strokes', key: 'O' },
  stop: { text: 'Window level', key: 'X', hint: 'stop marking: the mouse adjusts brightness and contrast again' },
  smaller: { text: 'Smaller', key: 'K', hint: 'the next smaller structure that the prompts may mean' },
  larger: { text: 'Larger', key: 'L', hint: 'the next larger structure that the prompts may mean' },
  undo: { text: 'Undo', key: 'Z' },
  redo: { text: 'Redo', key: 'Y' },
  save: { text: 'Save', key: 'S', hint: 'save the label as final' },
  next: { text: 'Next image', key: 'N' },
  uncertainty: { text: 'Show/hide', key: 'U', hint: 'color the regions where the model is uncertain' },
  train: { text: 'Train', hint: 'train the model on the images with a final label' },
  'stop-training': { text: 'Stop', hint: 'stop the training' },
  look: { text: 'Compare', hint: 'show it beside your label, in inverted colors; once more to hide it' },
  restore: { text: 'Restore', hint: 'go on from it; your label can be had back by Undo' },
  'keep-mine': { text: 'Save mine', hint: 'save your label over theirs, which stays in the list' },
  'keep-theirs': { text: 'Keep theirs', hint: 'leave their label as it is and show it' },
  'start-theirs': { text: 'Start from theirs', hint: 'correct their label; yours can be had back by Undo' },
};

/** The sections of the panel. */
export const SECTIONS = {
  automatic: 'Automatic segmentation',
  structure: 'Structure',
  prompts: 'Prompts',
  strokes: 'Strokes',
  revisions: 'Saved versions',
  next: 'Next image',
  uncertainty: 'Uncertainty',
  training: 'Training',
};

/** What the panel is doing. */
export const DOING = {
  connecting: 'connecting to the server…',
  opening: 'opening…',
  segmenting: 'segmenting…',
  prompting: 'updating the mask…',
  undoing: 'undoing…',
  redoing: 'redoing…',
  changing: 'changing the structure…',
  exporting: 'exporting…',
  saving: 'saving…',
  choosing: 'choosing the next image…',
  loadingUncertainty: 'loading the uncertainty map…',
  startingTraining: 'starting the training…',
  stoppingTraining: 'stopping the training…',
};

/** What came of it. */
export const DONE = {
  fresh: 'ready; this image has no final label yet',
  saved: 'ready; showing the final label',
  resumed: 'ready; your work is restored, and not saved yet',
  asLeft: 'ready; your work is as you left it',
  older: 'ready; somebody saved since your unsaved work, which is under Saved versions',
  noSeries: 'open a series of CT or MR slices',
  undone: 'undone',
  nothingToUndo: 'nothing to undo',
  redone: 'redone',
  nothingToRedo: 'nothing to redo',
  exported: 'exported',
  restored: 'restored; save it to keep it',
  revisionShown: 'shown beside your label, in inverted colors',
  revisionHidden: 'hidden',
  stored: 'saved',
  allLabelled: 'every image has a final label',
  uncertaintyHidden: 'uncertainty map hidden',
  noTraining: 'no training is running',
  trainingStopped: 'training stopped',
};

/** What the archive has of the saved label. */
export const ARCHIVE = {
  impossible: (/** @type {string} */ reason) => `labels can be saved on this server only, not in the archive: ${reason}`,
  there: 'stored in the archive as DICOM SEG',
  waiting: 'saved on this server; waiting for the archive',
  delayed: (/** @type {string} */ reason) => `saved on this server; the archive will be tried again: ${reason}`,
  refused: (/** @type {string} */ reason) => `saved on this server, but the archive rejected it: ${reason}`,
};

/** Where the unsaved work is. */
export const DRAFT = {
  kept: 'not saved yet; the server has a draft of it',
  sending: 'not saved yet; sending a draft of it…',
  lost: (/** @type {string} */ reason) => `not saved yet, and not on the server: ${reason}`,
};

/** Why something could not be done. */
export const PROBLEMS = {
  labelmapGone: 'the label was removed from the viewer: press Try again to show it as it was',
  helper: 'this is shown for comparison only and cannot be exported',
  noRevision: 'no label of this image was saved yet',
  noSeries: 'open a series first',
  noAutomatic: 'this server has no model for automatic segmentation',
  noPrompted: 'this server has no model that takes prompts',
  noScribbles: 'this server has no model that takes strokes',
  noScoring: 'this server has no scoring method',
  noTrainer: 'this server has no trainer',
  noSmaller: 'the model knows no smaller structure that the prompts may mean',
  noLarger: 'the model knows no larger structure that the prompts may mean',
  noStrokes: 'draw foreground and background strokes first, or set a box',
  pointOutside: 'the point lies outside the image',
  curveOutside: 'the curve leaves the image: draw it inside',
  curveTooSmall: 'the curve is too small: draw around the structure',
  serverAway: 'the server does not answer: is it running?',
  brokenOff: 'the connection was lost before the last mask',
  trainingLost: (/** @type {string} */ reason) => `lost contact with the training: ${reason}`,
  status: (/** @type {number} */ status) => `the server answered with status ${status}`,
  sliceOutside: 'a slice lies outside the image',
  sliceOffGrid: "the slices do not lie on the image's voxels",
  sliceTurned: "the rows and columns of the slices are not axes of the image's grid",
  sliceCount: (/** @type {number} */ shown, /** @type {number} */ voxels) =>
    `the viewer shows ${shown} voxels, but the image has ${voxels}`,
  uncertaintyOffGrid: "the uncertainty map is not on the image's grid",
  uncertaintyType: 'the uncertainty map is not of unsigned bytes',
  noMask: 'the server did not send a packed mask of version 1',
  maskHeader: 'the packed mask does not match its header',
  maskShape: 'the packed mask updates a mask of another shape',
  maskCut: 'the packed mask is truncated',
};

/** Failures of OHIF's own requests; 502 and 504 come from this server when the archive fails it. */
export const REQUESTS = {
  archive: 'the DICOM archive',
  server: 'the server',
  failed: (/** @type {string} */ source, /** @type {number} */ status) => {
    const known = /** @type {Record<number, string>} */ ({
      502: 'does not answer, or the connection broke off',
      504: 'did not answer in time',
    });
    return `${source} ${known[status] ?? `answers with status ${status}`}`;
  },
};

/** The segments for strokes while they are drawn. */
export const STROKES = { foreground: 'foreground stroke', background: 'background stroke' };

/** The bands of the uncertainty map. */
export const BANDS = ['moderate uncertainty', 'high uncertainty', 'very high uncertainty'];

export const MODE = 'Label with rayapp';
export const TITLE = 'rayapp';
export const KEY_PROMPT = 'Your access token for this server (rayapp users add …):';
export const NO_MODEL = 'none on this server';

/** A button's tooltip. @param {Button} button */
export const tooltip = ({ key, hint }) => [key && `Shift+${key}`, hint].filter(Boolean).join(': ');

/** @param {number} count @param {string} noun */
const counted = (count, noun) => `${count} more ${noun}${count === 1 ? '' : 's'}`;

/** Sentences with values in them. Voxels are indices i, j, k. */
export const says = {
  /** @param {string} name @param {number[]} voxel */
  point: (name, voxel) => `${name} at ${voxel.join(', ')}`,
  /** @param {number[]} voxel @param {number} left */
  extreme: (voxel, left) => `extreme point at ${voxel.join(', ')}; ${counted(left, 'point')} to click`,
  /** @param {number[]} voxel */
  corner: voxel => `corner at ${voxel.join(', ')}; click the opposite corner, on any slice`,
  /** @param {string} name */
  structure: name => `marks are for ${name}`,
  /** @param {string} tag */
  begun: tag => `ready; showing the label ${tag} to correct: save it to make it final`,
  /** A label's value that has no name. @param {number} value */
  unnamed: value => `segment ${value}`,
  /** @param {number} ml */
  volume: ml => (ml ? `${ml < 10 ? ml.toFixed(2) : ml < 100 ? ml.toFixed(1) : ml.toFixed(0)} ml` : ''),
  /** @param {string} name */
  looked: name => `looked for ${name}`,
  /** @param {string} name */
  notLooked: name => `not looked for ${name}`,
  /** @param {string} tag */
  tagged: tag => `label ${tag}`,
  /** @param {string} name */
  extremes: name => `extreme points of ${name}`,
  /** @param {string} name */
  curve: name => `closed curve around ${name}`,
  /** @param {number[][]} pairs first and last voxel along each axis */
  box: pairs => `box ${pairs.map(pair => pair.join(' to ')).join(' by ')}: prompts are limited to it`,
  /** @param {string} model @param {number} seconds @param {{smaller?: number, larger?: number}} others answers */
  answered: (model, seconds, { smaller = 0, larger = 0 }) => {
    const sizes = [larger && `${larger} larger (Shift+L)`, smaller && `${smaller} smaller (Shift+K)`].filter(Boolean);
    return [`${model}, ${seconds.toFixed(1)} s`, ...sizes].join('; ');
  },
  /** @param {string} what @param {string} answer */
  marked: (what, answer) => `${what}; ${answer}`,
  /** @param {string} what @param {string} answer */
  refining: (what, answer) => `${what}; ${answer}; refining…`,
  /** @param {string} image @param {string} strategy */
  chosen: (image, strategy) => `${image}, chosen by ${strategy}`,
  /** @param {string} strategy @param {string} description @param {[string, number][]} numbers */
  reason: (strategy, description, numbers) => {
    const values = numbers.map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`).join(', ');
    return `${strategy}: ${description}${values ? ` (${values})` : ''}`;
  },
  /** @param {number[]} slices */
  uncertainSlices: slices => `most uncertain slices: k = ${slices.join(', ')}`,
  /** @param {string} trainer */
  training: trainer => `training ${trainer} on the images with a final label`,
  /**
   * @param {string} status
   * @param {{epoch?: number, epochs?: number, metric?: number|null, seconds_left?: number|null}} progress
   * @param {string} problem
   */
  job: (status, { epoch = 0, epochs, metric, seconds_left }, problem) => {
    const numbers = [
      epochs && `epoch ${epoch} of ${epochs}`,
      typeof metric === 'number' && `Dice ${metric.toFixed(3)}`,
      typeof seconds_left === 'number' && status === 'RUNNING' && `${Math.ceil(seconds_left / 60)} min left`,
    ].filter(Boolean);
    return [status.toLowerCase(), ...numbers].join(', ') + (status === 'ERROR' ? `: ${problem}` : '');
  },
  /** @param {number} number @param {number} ts Unix seconds @param {string} user */
  revision: (number, ts, user) => `${number}: ${user}, ${new Date(1000 * ts).toLocaleString()}`,
  /** @param {number} ts Unix seconds */
  olderDraft: ts => `unsaved work, ${new Date(1000 * ts).toLocaleString()}`,
  /** @param {string} reason who saved when */
  conflict: reason => `not saved: ${reason}. Compare both below, then choose`,
  /** @param {string} image @param {string} what */
  labelmap: (image, what) => `${image} ${what}`,
};
