/** The panel: an annotator's actions, carried out one at a time. */

import { Archive } from './archive.mjs';
import { button, element, fill, options } from './dom.mjs';
import * as keys from './keys.mjs';
import { MODES, Mouse } from './mouse.mjs';
import { Next } from './next.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { Structures } from './structures.mjs';
import { Training } from './training.mjs';
import { Uncertainty } from './uncertainty.mjs';
import { BUTTONS, DOING, DONE, PROBLEMS, SECTIONS, says } from './words.mjs';
import { BACKGROUND, Work } from './work.mjs';

const PROMPTED = ['deepedit', 'deepgrow'];
const SCRIBBLED = ['scribbles'];
const AUTOMATIC = ['segmentation', 'deepedit'];

export class Panel {
  /** @param {HTMLElement} node @param {Services} services OHIF's */
  constructor(node, services) {
    this.node = node;
    this.services = services;
    /** @type {import('./work.mjs').Known|null} */
    this.known = null;
    /** @type {Work|null} */
    this.work = null;
    this.turn = Promise.resolve();
    this.waiting = 0; // actions begun or queued
    /** @type {import('./next.mjs').Run} */
    const run = (doing, act) => this.#run(doing, act);
    this.structures = new Structures(
      () => this.#changeStructure(),
      name => this.#learn(name)
    );
    this.next = new Next(run);
    this.training = new Training(run);
    this.uncertainty = new Uncertainty(run, () => this.#needed().labelmap);
    this.archive = new Archive();
    this.parts = {
      image: element('div', { className: 'image' }),
      reason: element('div', { className: 'reason' }),
      automatic: element('select', { name: 'automatic' }),
      prompted: element('select', { name: 'prompted' }),
      scribbled: element('select', { name: 'scribbled' }),
      status: element('div', { className: 'status', role: 'status' }),
      again: button('again', () => this.#run(DOING.connecting, () => this.#open())),
    };
    this.#build();
    this.mouse = new Mouse(services.toolGroupService, mark => run(DOING.prompting, () => this.#mark(mark)));
    this.stops = [...this.#watchViewports(), keys.watch(node)];
    run(DOING.connecting, () => this.#open());
  }

  close() {
    this.stops.forEach(stop => stop());
    this.mouse.close();
    this.training.close();
    this.archive.close();
    this.node.replaceChildren();
  }

  #build() {
    const { parts } = this;
    const section = (/** @type {keyof typeof SECTIONS} */ name) => element('h3', {}, SECTIONS[name]);
    const mode = (/** @type {import('./mouse.mjs').MouseMode} */ name) => button(name, () => this.#use(name));
    fill(
      this.node,
      parts.image,
      parts.reason,
      parts.status,
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
        button('undo', () => this.#run(DOING.undoing, () => this.#needed().undo())),
        button('save', () => this.#run(DOING.saving, () => this.#save()))
      ),
      this.next.node,
      this.uncertainty.node,
      this.training.node
    );
  }

  /**
   * Run actions one after the other and show what came of each. A refinement still in progress is given up.
   *
   * @param {string} doing
   * @param {() => Promise<string|null|undefined>} act
   */
  #run(doing, act) {
    this.waiting += 1;
    this.work?.hurry();
    this.turn = this.turn.then(async () => {
      this.#show(doing, 'doing');
      this.#enable(false);
      try {
        const text = await act();
        this.#show(text ?? '', this.work ? 'done' : 'waiting');
      } catch (error) {
        this.#show(server.reason(error), 'wrong');
      }
      this.waiting -= 1;
      this.parts.status.dataset.turn = String(Number(this.parts.status.dataset.turn ?? 0) + 1);
      this.#enable(true);
      this.parts.again.hidden = Boolean(this.work);
    });
  }

  /** @param {string} text @param {'doing'|'done'|'waiting'|'wrong'} state */
  #show(text, state) {
    this.parts.status.textContent = text;
    this.parts.status.dataset.state = state;
  }

  /** @param {boolean} on */
  #enable(on) {
    this.node.querySelectorAll('button').forEach(one => (one.disabled = !on));
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
    this.training.show(Object.keys(trainers)).catch(error => this.#show(server.reason(error), 'wrong'));
    return { models, names: this.structures.names, learn: (/** @type {string} */ name) => this.structures.learn(name) };
  }

  /** Open the series in the active viewport: its image, and the work on it so far. */
  async #open() {
    this.known ??= await this.#meet();
    const shown = this.#shown();
    if (!shown) {
      await server.studies();
      return DONE.noSeries;
    }
    if (this.work?.labelmap.displaySet === shown) {
      await this.work.labelmap.attach();
      return null;
    }
    this.work = null;
    this.mouse.forget();
    this.uncertainty.hide();
    const work = await Work.open(this.services, shown, this.known);
    const { image, labels, not_storable } = work.image;
    this.parts.image.textContent = image;
    this.parts.reason.textContent = this.next.reason(image);
    const text = await work.begin();
    this.work = work;
    this.archive.warn(not_storable);
    if (labels.includes('final')) {
      this.archive.follow(image);
    }
    return text;
  }

  #shown() {
    const { viewportGridService, displaySetService } = this.services;
    const { activeViewportId, viewports } = viewportGridService.getState();
    return (viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [])
      .map(uid => displaySetService.getDisplaySetByUID(uid))
      .find(one => one && one.imageIds?.length > 0 && one.Modality !== 'SEG');
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

  #changeStructure() {
    if (this.work) {
      this.work.strokes = this.work.box = null;
    }
    this.#use(this.mouse.mode);
  }

  /** Set the action of the primary mouse button. @param {import('./mouse.mjs').MouseMode|null} mode */
  #use(mode) {
    const painted = { 'stroke-on': strokes.ON, 'stroke-off': strokes.OFF };
    const stroke = mode === 'stroke-on' || mode === 'stroke-off' ? painted[mode] : null;
    this.work?.labelmap.select(stroke ?? this.structures.segment);
    this.mouse.use(mode);
    MODES.forEach(name => this.node.querySelector(`[name=${name}]`)?.classList.toggle('on', name === mode));
  }

  async #segment() {
    return this.#needed().segment(this.#model(this.parts.automatic, PROBLEMS.noAutomatic));
  }

  /** Act on a point or a curve that the user has placed. @param {Annotation} mark */
  async #mark(mark) {
    const label = this.structures.active;
    let read, work, model;
    try {
      work = this.#needed();
      model = this.#model(this.parts.prompted, PROBLEMS.noPrompted);
      const on = this.mouse.mode !== 'background';
      const name = !on ? BACKGROUND : work.models[model].type === 'deepgrow' ? 'foreground' : label;
      points.paint(mark, work.colourOf(on ? label : null));
      read = this.mouse.read(mark, work.labelmap, name, on ? label : BACKGROUND);
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
    const text = await work.prompt(model, label, read.prompt, read.points, this.#refining(what));
    return says.marked(what, text);
  }

  /** Take the next larger (1) or smaller (-1) answer. @param {1|-1} step */
  async #resize(step) {
    const what = step > 0 ? BUTTONS.larger.text : BUTTONS.smaller.text;
    const text = await this.#needed().resize(step, this.structures.active, this.#refining(what));
    return says.marked(what, text);
  }

  /** Shows that a first mask is there and a better one on its way. @param {string} what was done */
  #refining(what) {
    return (/** @type {string} */ text) => {
      this.#show(says.refining(what, text), 'doing');
      this.#enable(true);
    };
  }

  async #scribble() {
    const work = this.#needed();
    return work.scribble(this.#model(this.parts.scribbled, PROBLEMS.noScribbles), this.structures.active);
  }

  async #save() {
    const work = this.#needed();
    const text = await work.save();
    this.archive.follow(work.image.image);
    return text;
  }

  #watchViewports() {
    const { viewportGridService } = this.services;
    const { ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY } = viewportGridService.EVENTS;
    return [ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY].map(name => {
      const { unsubscribe } = viewportGridService.subscribe(name, () => {
        if (this.known && !this.waiting && this.#shown() !== this.work?.labelmap.displaySet) {
          this.#run(DOING.opening, () => this.#open());
        }
      });
      return unsubscribe;
    });
  }
}
