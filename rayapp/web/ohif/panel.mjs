/** The panel: what an annotator can do with the series that is shown. */

import { Actions } from './actions.mjs';
import { Archive } from './archive.mjs';
import { button, element, fill, options } from './dom.mjs';
import * as edits from './edits.mjs';
import * as keys from './keys.mjs';
import { BACKGROUND, single } from './meaning.mjs';
import { MODES, Mouse } from './mouse.mjs';
import { Next } from './next.mjs';
import * as points from './points.mjs';
import { Revisions } from './revisions.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { Structures } from './structures.mjs';
import { Training } from './training.mjs';
import { Uncertainty } from './uncertainty.mjs';
import * as viewports from './viewports.mjs';
import { BUTTONS, DOING, DONE, DRAFT, PROBLEMS, SECTIONS, says } from './words.mjs';
import { works } from './works.mjs';

/** @typedef {import('./work.mjs').Work} Work */

const PROMPTED = ['deepedit', 'deepgrow'];
const SCRIBBLED = ['scribbles'];
const AUTOMATIC = ['segmentation', 'deepedit'];

export class Panel {
  /** @param {Services} services OHIF's */
  constructor(services) {
    this.node = element('div', { className: 'rayapp' });
    this.services = services;
    /** @type {import('./work.mjs').Known|null} */
    this.known = null;
    /** @type {Work|null} */
    this.work = null;
    this.actions = new Actions(
      this.node,
      () => (this.work ? 'done' : 'waiting'),
      () => {
        this.parts.again.hidden = Boolean(this.work?.labelmap.there);
        this.#describe();
      }
    );
    /** @type {import('./next.mjs').Run} */
    const run = (doing, act) => this.#run(doing, act);
    this.structures = new Structures(
      left => this.#run(DOING.changing, () => this.#changeStructure(left)),
      name => this.#learn(name),
      name => this.#run(DOING.changing, () => this.#needed().look(name))
    );
    this.next = new Next(run, () => works.flush().catch(() => {})); // what is lost then, the browser asks about
    this.training = new Training(run);
    const reselect = () => this.#select();
    this.uncertainty = new Uncertainty(run, () => this.#needed().labelmap, reselect);
    this.revisions = new Revisions(run, () => this.#needed(), reselect);
    this.archive = new Archive();
    this.parts = {
      image: element('div', { className: 'image' }),
      reason: element('div', { className: 'reason' }),
      automatic: element('select', { name: 'automatic' }),
      prompted: element('select', { name: 'prompted' }),
      scribbled: element('select', { name: 'scribbled' }),
      draft: element('div', { className: 'draft', role: 'status' }),
      again: button('again', () => this.#run(DOING.connecting, () => this.#open())),
    };
    this.#build();
    const marked = (/** @type {Annotation} */ mark) => {
      const [mode, label] = [this.mouse.mode, this.structures.active]; // as they are now, not when its turn comes
      run(DOING.prompting, () => this.#mark(mark, mode, label));
    };
    this.mouse = new Mouse(services.toolGroupService, marked, () => this.#left());
    this.stops = [
      viewports.watch(services, () => this.#look()),
      keys.watch(this.node),
      edits.watch((id, group) => this.#painted(id, group)),
    ];
    works.changed = () => this.#describe();
    run(DOING.connecting, () => this.#open());
  }

  close() {
    this.stops.forEach(stop => stop());
    this.mouse.close();
    this.training.close();
    this.archive.close();
    this.node.remove();
  }

  /** Save, as the button does. */
  save() {
    this.#run(DOING.saving, () => this.#save());
  }

  /** Undo or redo, as the buttons do. @param {'undo'|'redo'} kind */
  turn(kind) {
    this.#run(kind === 'undo' ? DOING.undoing : DOING.redoing, () => this.#turn(kind));
  }

  /** Say that what is shown for comparison is not exported. */
  refuseExport() {
    this.#run(DOING.saving, async () => {
      throw new Error(PROBLEMS.helper);
    });
  }

  /** Let something read the labelmap while no strokes are in it. @param {() => Promise<unknown>} read */
  withoutStrokes(read) {
    this.#run(DOING.exporting, async () => {
      await this.#needed().bare(read);
      return DONE.exported;
    });
  }

  #build() {
    const { parts } = this;
    const section = (/** @type {keyof typeof SECTIONS} */ name) => element('h3', {}, SECTIONS[name]);
    const mode = (/** @type {import('./mouse.mjs').MouseMode} */ name) => button(name, () => this.#use(name));
    fill(
      this.node,
      parts.image,
      parts.reason,
      this.actions.status,
      parts.draft,
      parts.again,
      this.archive.node,
      section('automatic'),
      parts.automatic,
      button('segment', () => this.#run(DOING.segmenting, () => this.#segment())),
      section('structure'),
      this.structures.node,
      section('prompts'),
      parts.prompted,
      mode('foreground'),
      mode('background'),
      mode('extreme'),
      mode('curve'),
      mode('corner'),
      section('strokes'),
      parts.scribbled,
      mode('stroke-on'),
      mode('stroke-off'),
      button('scribble', () => this.#run(DOING.segmenting, () => this.#scribble())),
      element(
        'div',
        { className: 'actions' },
        button('stop', () => this.#use(null)),
        button('smaller', () => this.#run(DOING.prompting, () => this.#resize(-1))),
        button('larger', () => this.#run(DOING.prompting, () => this.#resize(1))),
        button('undo', () => this.turn('undo')),
        button('redo', () => this.turn('redo')),
        button('save', () => this.save())
      ),
      this.revisions.node,
      this.next.node,
      this.uncertainty.node,
      this.training.node
    );
  }

  /**
   * Run an action after those before it. A refinement still in progress is given up.
   *
   * @param {string} doing
   * @param {() => Promise<string|null|undefined>} act
   */
  #run(doing, act) {
    this.work?.prompter.hurry();
    this.actions.run(doing, act);
  }

  /** Ask the server what it offers. */
  async #meet() {
    const { models, labels, strategies, scoring, trainers } = await server.info();
    const typed = (/** @type {string[]} */ types) =>
      Object.keys(models).filter(name => types.includes(models[name].type));
    options(this.parts.automatic, typed(AUTOMATIC));
    options(this.parts.prompted, typed(PROMPTED));
    options(this.parts.scribbled, typed(SCRIBBLED));
    this.structures.show(models, labels);
    this.next.show(strategies);
    this.uncertainty.show(Object.keys(scoring));
    this.training.show(Object.keys(trainers)).catch(error => this.actions.show(server.reason(error), 'wrong'));
    return { models, names: this.structures.names, learn: (/** @type {string} */ name) => this.structures.learn(name) };
  }

  /** Open the series in the active viewport: its image, and the work on it so far. */
  async #open() {
    this.known ??= await this.#meet();
    const shown = viewports.shown(this.services);
    if (!shown) {
      await server.studies();
      return DONE.noSeries;
    }
    const before = this.work;
    this.work = null;
    this.mouse.forget();
    if (before && before.image.series !== shown.SeriesInstanceUID) {
      before.hide();
      this.uncertainty.hide();
      this.revisions.hide();
    }
    const { work, text } = await works.open(this.services, shown, this.known);
    const { image, labels, not_storable } = work.image;
    this.work = work;
    this.parts.image.textContent = image;
    this.parts.reason.textContent = this.next.reason(image);
    this.archive.warn(not_storable);
    if (labels.includes('final')) {
      this.archive.follow(image);
    }
    await this.revisions.show(work);
    this.#select();
    return text;
  }

  #needed() {
    if (!this.work) {
      throw new Error(PROBLEMS.noSeries);
    }
    return this.work;
  }

  /** The chosen model. @param {HTMLSelectElement} select @param {string} problem if there is none */
  #model(select, problem) {
    if (!select.value) {
      throw new Error(problem);
    }
    return select.value;
  }

  /** Offer a structure that the reader has named. @param {string} name */
  #learn(name) {
    if (this.work) {
      this.work.learn(name);
    } else if (!this.structures.names.includes(name)) {
      this.structures.learn(name);
    }
  }

  /** @param {string} left the structure that marks were for until now */
  async #changeStructure(left) {
    this.mouse.forget();
    await this.work?.leave(left);
    this.#select();
    return says.structure(this.structures.active);
  }

  /** Set the action of the primary mouse button. @param {import('./mouse.mjs').MouseMode|null} mode */
  #use(mode) {
    this.mouse.use(mode);
    this.#select();
  }

  /** Another tool than that of the mode was taken. */
  #left() {
    this.#select();
  }

  /** Let OHIF's tools paint the active structure, and the strokes' tool strokes; and show the mode. */
  #select() {
    const { mode } = this.mouse;
    const stroke = mode === 'stroke-on' ? strokes.ON : mode === 'stroke-off' ? strokes.OFF : null;
    this.work?.labelmap.select(stroke ?? this.structures.segment);
    MODES.forEach(name => this.node.querySelector(`[name=${name}]`)?.classList.toggle('on', name === mode));
  }

  /** Something was painted by hand. @param {string} id of the segmentation @param {string} group */
  #painted(id, group) {
    const work = works.of(id);
    if (work?.labelmap.there) {
      work.observe(group);
    }
  }

  /** Say what the work has of each structure, and where it is if it is not saved. */
  #describe() {
    if (this.work) {
      const { volumes, lookedFor } = this.work;
      this.structures.describe({ volumes, lookedFor });
    }
    const draft = this.work?.draft;
    const sent = !draft?.unsent.length;
    const state = draft?.problem ? 'lost' : !sent ? 'sending' : draft?.unsaved ? 'kept' : '';
    this.parts.draft.dataset.state = state;
    this.parts.draft.textContent =
      state === 'lost' ? DRAFT.lost(draft?.problem ?? '') : state === '' ? '' : DRAFT[state === 'kept' ? 'kept' : 'sending'];
  }

  /** @param {'undo'|'redo'} kind */
  async #turn(kind) {
    const { text, left } = await this.#needed().turn(kind);
    if (left) {
      this.structures.activate(left);
      this.#select();
    }
    return text;
  }

  async #segment() {
    return this.#needed().prompter.segment(this.#model(this.parts.automatic, PROBLEMS.noAutomatic));
  }

  /**
   * Act on a point or a curve that the user has placed.
   *
   * @param {Annotation} mark
   * @param {import('./mouse.mjs').MouseMode|null} mode in which it was made
   * @param {string} label the structure that was active
   */
  async #mark(mark, mode, label) {
    let read, work, model;
    try {
      work = this.#needed();
      model = this.#model(this.parts.prompted, PROBLEMS.noPrompted);
      const on = mode !== 'background';
      const name = !on ? BACKGROUND : single(work.prompter.models[model]) ? 'foreground' : label;
      points.paint(mark, work.colourOf(on ? label : null));
      read = this.mouse.read(mark, mode, work.labelmap, name, on ? label : BACKGROUND);
    } catch (error) {
      points.remove(mark);
      throw error;
    }
    if ('more' in read) {
      return read.more;
    }
    if ('box' in read) {
      work.box = read.box;
      return read.what;
    }
    const { what } = read;
    const text = await work.prompter.prompt(model, label, read.prompt, read.points, this.#refining(what));
    return says.marked(what, text);
  }

  /** Take the next larger (1) or smaller (-1) answer. @param {1|-1} step */
  async #resize(step) {
    const what = step > 0 ? BUTTONS.larger.text : BUTTONS.smaller.text;
    const text = await this.#needed().prompter.resize(step, this.structures.active, this.#refining(what));
    return says.marked(what, text);
  }

  /** Shows that a first mask is there and a better one on its way. @param {string} what was done */
  #refining(what) {
    return (/** @type {string} */ text) => this.actions.refining(says.refining(what, text));
  }

  async #scribble() {
    const work = this.#needed();
    return work.prompter.scribble(this.#model(this.parts.scribbled, PROBLEMS.noScribbles), this.structures.active);
  }

  async #save() {
    const work = this.#needed();
    const text = await this.revisions.save();
    this.archive.follow(work.image.image);
    return text;
  }

  /** Another viewport is active, or they are others. */
  #look() {
    if (!this.known || this.actions.waiting) {
      return;
    }
    if (viewports.shown(this.services) !== this.work?.labelmap.displaySet) {
      this.#run(DOING.opening, () => this.#open());
    } else if (this.work?.labelmap.there) {
      this.work.labelmap.ready().then(() => this.#select()); // in viewports opened since
    }
  }
}
