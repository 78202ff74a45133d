/** The panel: what an annotator does, one thing at a time. */

import { Archive } from './archive.mjs';
import { element, fill, options } from './dom.mjs';
import * as keys from './keys.mjs';
import { MODES, Mouse } from './mouse.mjs';
import { Next } from './next.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { Structures } from './structures.mjs';
import { Training } from './training.mjs';
import { Uncertainty } from './uncertainty.mjs';
import { BACKGROUND, Work } from './work.mjs';

const CLICKED = ['deepedit', 'deepgrow'];
const SCRIBBLED = ['scribbles'];
const AUTOMATIC = ['segmentation', 'deepedit'];

export class Panel {
  constructor(node, services) {
    this.node = node;
    this.services = services;
    this.info = null;
    this.work = null;
    this.turn = Promise.resolve();
    this.waiting = 0; // things begun, or to be
    const run = (doing, act) => this.#run(doing, act);
    this.structures = new Structures(() => this.#changeStructure());
    this.next = new Next(run);
    this.training = new Training(run);
    this.uncertainty = new Uncertainty(run, () => this.#needed().labelmap);
    this.archive = new Archive();
    this.#build();
    this.mouse = new Mouse(services.toolGroupService, mark => run('thinking…', () => this.#mark(mark)));
    this.ends = [...this.#watchViewports(), keys.watch(node)];
    run('asking the server…', () => this.#open());
  }

  close() {
    this.ends.forEach(end => end());
    this.mouse.close();
    this.training.close();
    this.archive.close();
    this.node.replaceChildren();
  }

  #build() {
    const button = (name, text, title, act) => element('button', { name, title, onclick: act }, text);
    const mode = (name, text, title) => button(name, text, title, () => this.#use(name));
    this.parts = {
      image: element('div', { className: 'image' }),
      reason: element('div', { className: 'reason' }),
      automatic: element('select', { name: 'automatic' }),
      clicked: element('select', { name: 'clicked' }),
      scribbled: element('select', { name: 'scribbled' }),
      said: element('div', { className: 'said', role: 'status' }),
      again: button('again', 'Try again', '', () => this.#run('asking the server…', () => this.#open())),
    };
    const { parts } = this;
    fill(
      this.node,
      parts.image,
      parts.reason,
      parts.said,
      parts.again,
      this.archive.node,
      element('h3', {}, 'Automatic'),
      parts.automatic,
      button('segment', 'Segment', 'Shift+A', () => this.#run('segmenting…', () => this.#segment())),
      element('h3', {}, 'Structure'),
      this.structures.node,
      element('h3', {}, 'Points'),
      parts.clicked,
      mode('foreground', 'On it', 'Shift+F'),
      mode('background', 'Not on it', 'Shift+B'),
      mode('extreme', 'Ends', 'Shift+P: click where it ends, to all six sides'),
      mode('curve', 'Curve', 'Shift+C: draw around it on one slice'),
      mode('corner', 'Box', 'Shift+R: click two opposite corners, also on different slices'),
      element('h3', {}, 'Strokes'),
      parts.scribbled,
      mode('stroke-on', 'Draw on it', 'Shift+D'),
      mode('stroke-off', 'Draw beside it', 'Shift+E'),
      button('scribble', 'Outline', 'Shift+O', () => this.#run('outlining…', () => this.#scribble())),
      element(
        'div',
        { className: 'ends' },
        button('stop', 'Look', "Shift+X: the mouse is OHIF's again", () => this.#use(null)),
        button('undo', 'Undo', 'Shift+Z', () => this.#run('undoing…', () => this.#needed().undo())),
        button('save', 'Save', 'Shift+S', () => this.#run('saving…', () => this.#save()))
      ),
      this.next.node,
      this.uncertainty.node,
      this.training.node
    );
  }

  /** Do one thing after the others; what goes wrong is told. A refinement that goes on makes way. */
  #run(doing, act) {
    this.waiting += 1;
    this.work?.hurry();
    this.turn = this.turn.then(async () => {
      this.#say(doing, 'doing');
      this.#enable(false);
      try {
        const said = await act();
        this.#say(said ?? '', this.work ? 'done' : 'waiting');
      } catch (error) {
        this.#say(error.message, 'wrong');
      }
      this.waiting -= 1;
      this.parts.said.dataset.turn = Number(this.parts.said.dataset.turn ?? 0) + 1;
      this.#enable(true);
      this.parts.again.hidden = Boolean(this.work);
    });
  }

  #say(text, state) {
    this.parts.said.textContent = text;
    this.parts.said.dataset.state = state;
  }

  #enable(on) {
    this.node.querySelectorAll('button').forEach(one => (one.disabled = !on));
  }

  /** Learn what the server has. */
  async #meet() {
    const { models, strategies, scoring, trainers } = await server.info();
    const typed = types => Object.keys(models).filter(name => types.includes(models[name].type));
    options(this.parts.automatic, typed(AUTOMATIC));
    options(this.parts.clicked, typed(CLICKED));
    options(this.parts.scribbled, typed(SCRIBBLED));
    this.structures.show(models);
    this.next.show(strategies);
    this.uncertainty.show(Object.keys(scoring));
    this.training.show(Object.keys(trainers)).catch(error => this.#say(error.message, 'wrong'));
    this.info = { models, names: this.structures.names };
  }

  /** Go to the series that is shown: find its image, and what was done on it. */
  async #open() {
    if (!this.info) {
      await this.#meet();
    }
    const shown = this.#shown();
    if (!shown) {
      await server.studies();
      return 'open a series of CT or MR slices';
    }
    if (this.work?.labelmap.displaySet === shown) {
      await this.work.labelmap.attach();
      return null;
    }
    this.work = null;
    this.mouse.forget();
    this.uncertainty.hide();
    const work = await Work.open(this.services, shown, this.info);
    const { image, labels } = work.image;
    this.parts.image.textContent = image;
    this.parts.reason.textContent = this.next.reason(image);
    const said = await work.begin();
    this.work = work;
    if (labels.includes('final')) {
      this.archive.follow(image);
    }
    return said;
  }

  #shown() {
    const { viewportGridService, displaySetService } = this.services;
    const { activeViewportId, viewports } = viewportGridService.getState();
    return (viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [])
      .map(uid => displaySetService.getDisplaySetByUID(uid))
      .find(one => one?.imageIds?.length > 0 && one.Modality !== 'SEG');
  }

  #needed() {
    if (!this.work) {
      throw new Error('open a series first');
    }
    return this.work;
  }

  /** The model that a select names. */
  #model(select, what) {
    if (!select.value) {
      throw new Error(`this server has no model that ${what}`);
    }
    return select.value;
  }

  #changeStructure() {
    if (this.work) {
      this.work.strokes = this.work.box = null;
    }
    this.#use(this.mouse.mode);
  }

  /** Say what the first mouse button does. */
  #use(mode) {
    const drawn = { 'stroke-on': strokes.ON, 'stroke-off': strokes.OFF };
    this.work?.labelmap.select(drawn[mode] ?? this.structures.segment);
    this.mouse.use(mode);
    MODES.forEach(name => this.node.querySelector(`[name=${name}]`).classList.toggle('on', name === mode));
  }

  async #segment() {
    return this.#needed().segment(this.#model(this.parts.automatic, 'segments by itself'));
  }

  /** A point or a curve that was set. */
  async #mark(mark) {
    const label = this.structures.active;
    let read;
    try {
      const work = this.#needed();
      const model = this.#model(this.parts.clicked, 'takes points');
      const on = this.mouse.mode !== 'background';
      const name = !on ? BACKGROUND : this.info.models[model].type === 'deepgrow' ? 'foreground' : label;
      points.paint(mark, work.colourOf(on ? label : null));
      read = this.mouse.read(mark, work.labelmap, name);
    } catch (error) {
      points.remove(mark);
      throw error;
    }
    if (read.more) {
      return read.more;
    }
    if (read.box) {
      this.work.box = read.box;
      return `${read.what}: points and strokes are kept to it`;
    }
    const told = text => {
      this.#say(`${read.what}; ${text}, and a finer one is on its way…`, 'doing');
      this.#enable(true);
    };
    return `${read.what}; ${await this.work.prompt(this.parts.clicked.value, label, read.said, read.dots, told)}`;
  }

  async #scribble() {
    const work = this.#needed();
    return work.scribble(this.#model(this.parts.scribbled, 'takes strokes'), this.structures.active);
  }

  async #save() {
    const work = this.#needed();
    const said = await work.save();
    this.archive.follow(work.image.image);
    return said;
  }

  #watchViewports() {
    const { viewportGridService } = this.services;
    const { ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY } = viewportGridService.EVENTS;
    return [ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY].map(name => {
      const { unsubscribe } = viewportGridService.subscribe(name, () => {
        if (this.info && !this.waiting && this.#shown() !== this.work?.labelmap.displaySet) {
          this.#run('opening…', () => this.#open());
        }
      });
      return unsubscribe;
    });
  }
}
