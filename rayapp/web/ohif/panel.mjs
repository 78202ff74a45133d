/** The panel: what an annotator does, one thing at a time. */

import { element, fill, options } from './dom.mjs';
import { Labelmap, colour } from './labelmap.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';
import * as strokes from './strokes.mjs';
import { Training } from './training.mjs';
import { Uncertainty } from './uncertainty.mjs';

const CLIENT = 'ohif';
const STEPS = 20; // that can be undone
const BACKGROUND = 'background';
const CLICKED = ['deepedit', 'deepgrow'];
const SCRIBBLED = ['scribbles'];
const REASON = 'rayapp-reason'; // why the next image was chosen, told when it is open
const AUTOMATIC = ['segmentation', 'deepedit'];

export class Panel {
  constructor(node, services) {
    this.node = node;
    this.services = services;
    this.labelmap = null;
    this.interaction = null;
    this.done = []; // what can be undone: {dot} of a prompt, {before} of the rest
    this.busy = null;
    this.mode = null; // what the first mouse button does: foreground, background, corner, stroke, or OHIF's own
    this.#build();
    this.ends = [
      points.listen(annotation => this.#run('thinking…', () => this.#point(annotation))),
      ...this.#watchViewports(),
      this.#watchKeys(),
    ];
    this.#run('asking the server…', () => this.#start());
  }

  close() {
    this.ends.forEach(end => end());
    this.training.close();
    this.node.replaceChildren();
  }

  #build() {
    const button = (name, text, title, act) => element('button', { name, title, onclick: act }, text);
    this.training = new Training((doing, act) => this.#run(doing, act));
    this.uncertainty = new Uncertainty(
      (doing, act) => this.#run(doing, act),
      () => this.#needed()
    );
    this.parts = {
      image: element('div', { className: 'image' }),
      reason: element('div', { className: 'reason' }),
      automatic: element('select', { name: 'automatic' }),
      clicked: element('select', { name: 'clicked', onchange: () => this.#changeModel() }),
      labels: element('div', { className: 'labels' }),
      scribbled: element('select', { name: 'scribbled' }),
      strategy: element('select', { name: 'strategy' }),
      said: element('div', { className: 'said', role: 'status' }),
    };
    const { parts } = this;
    fill(
      this.node,
      parts.image,
      parts.reason,
      parts.said,
      element('h3', {}, 'Automatic'),
      parts.automatic,
      button('segment', 'Segment', 'Shift+A', () => this.#run('segmenting…', () => this.#segment())),
      element('h3', {}, 'Structure'),
      parts.labels,
      element('h3', {}, 'Points'),
      parts.clicked,
      button('foreground', 'On it', 'Shift+F', () => this.#use('foreground')),
      button('background', 'Not on it', 'Shift+B', () => this.#use('background')),
      button('corner', 'Box', 'Shift+R: click two opposite corners, also on different slices', () => this.#use('corner')),
      element('h3', {}, 'Strokes'),
      parts.scribbled,
      button('stroke-on', 'Draw on it', 'Shift+D', () => this.#use('stroke-on')),
      button('stroke-off', 'Draw beside it', 'Shift+E', () => this.#use('stroke-off')),
      button('scribble', 'Outline', 'Shift+O', () => this.#run('outlining…', () => this.#scribble())),
      element(
        'div',
        { className: 'ends' },
        button('stop', 'Look', "Shift+X: the mouse is OHIF's again", () => this.#use(null)),
        button('undo', 'Undo', 'Shift+Z', () => this.#run('undoing…', () => this.#undo())),
        button('save', 'Save', 'Shift+S', () => this.#run('saving…', () => this.#save()))
      ),
      element('h3', {}, 'Next image'),
      parts.strategy,
      button('next', 'Next', 'Shift+N', () => this.#run('choosing…', () => this.#next())),
      this.uncertainty.node,
      this.training.node
    );
  }

  /** Do one thing; what goes wrong is told, and nothing else is begun meanwhile. */
  async #run(doing, act) {
    if (this.busy) {
      await this.busy;
    }
    this.#say(doing, 'doing');
    this.node.querySelectorAll('button').forEach(one => (one.disabled = true));
    this.busy = act()
      .then(said => this.#say(said ?? '', this.labelmap ? 'done' : 'waiting'))
      .catch(error => this.#say(error.message, 'wrong'))
      .finally(() => {
        this.busy = null;
        this.parts.said.dataset.turn = Number(this.parts.said.dataset.turn ?? 0) + 1;
        this.node.querySelectorAll('button').forEach(one => (one.disabled = false));
      });
    await this.busy;
  }

  #say(text, state) {
    this.parts.said.textContent = text;
    this.parts.said.dataset.state = state;
  }

  async #start() {
    this.info = await server.info();
    const typed = types => Object.keys(this.info.models).filter(name => types.includes(this.info.models[name].type));
    options(this.parts.automatic, typed(AUTOMATIC));
    options(this.parts.clicked, typed(CLICKED));
    options(this.parts.scribbled, typed(SCRIBBLED));
    options(this.parts.strategy, Object.keys(this.info.strategies));
    const known = Object.values(this.info.models).flatMap(model => Object.entries(model.labels));
    const values = new Map(known.sort((a, b) => a[1] - b[1]).filter(([name]) => name !== BACKGROUND));
    this.names = [...values.keys()];
    this.label = this.names[0];
    this.uncertainty.show(Object.keys(this.info.scoring));
    this.#labels();
    points.install(this.services.toolGroupService);
    this.training.show(Object.keys(this.info.trainers)).catch(error => this.#say(error.message, 'wrong'));
    return this.#open();
  }

  #labels() {
    const rows = this.names.map((name, at) =>
      element(
        'button',
        {
          name: 'label',
          value: name,
          className: name === this.label ? 'label on' : 'label',
          style: `--colour: rgb(${colour(at + 1)})`,
          onclick: () => this.#choose(name),
        },
        name
      )
    );
    fill(this.parts.labels, ...rows);
  }

  #choose(name) {
    this.label = name;
    this.strokes = this.box = this.corner = null;
    this.#labels();
    this.#use(this.mode);
  }

  /** Go to the series that is shown: find its image, and what was saved of it. */
  async #open() {
    const shown = this.#shown();
    if (!shown) {
      return 'open a series of CT or MR slices';
    }
    if (this.labelmap?.displaySet === shown) {
      await this.labelmap.attach();
      return null;
    }
    this.labelmap = this.interaction = this.strokes = this.box = this.corner = null;
    this.uncertainty.hide();
    this.done = [];
    const image = await server.imageOfSeries(shown.SeriesInstanceUID);
    const structures = this.names.map((label, at) => ({ value: at + 1, label, colour: colour(at + 1) }));
    const labelmap = new Labelmap(this.services, shown, image, [...structures, ...strokes.SEGMENTS]);
    this.parts.image.textContent = image.image;
    const { id, why } = JSON.parse(sessionStorage.getItem(REASON) ?? '{}');
    this.parts.reason.textContent = id === image.image ? why : '';
    this.labelmap = labelmap;
    if (!image.labels.includes('final')) {
      await labelmap.set(new Uint8Array(labelmap.size));
      return 'ready; nothing was saved of this image yet';
    }
    const { params, mask } = await server.label(image.image, 'final');
    await labelmap.set(this.#named(mask.labels, this.#saved(params), null));
    return 'ready; this is what was saved';
  }

  /** The names of a saved label's values. */
  #saved({ info, label_names }) {
    const said = (info.label_info ?? []).filter(one => one.idx !== undefined).map(one => [one.name, one.idx]);
    const named = said.length ? said : Object.entries(label_names ?? {});
    return Object.fromEntries(named.length ? named : this.names.map((name, at) => [name, at + 1]));
  }

  #shown() {
    const { viewportGridService, displaySetService } = this.services;
    const { activeViewportId, viewports } = viewportGridService.getState();
    return (viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [])
      .map(uid => displaySetService.getDisplaySetByUID(uid))
      .find(one => one?.imageIds?.length > 0 && one.Modality !== 'SEG');
  }

  #needed() {
    if (!this.labelmap) {
      throw new Error('open a series first');
    }
    return this.labelmap;
  }

  /** A model's values as segments. Of a model of one structure (`only`), the rest stays as it is. */
  #named(labels, names, only) {
    const segments = new Uint8Array(256);
    for (const [name, value] of Object.entries(names)) {
      segments[value] = this.names.indexOf(name) + 1;
    }
    if (!only) {
      return Uint8Array.from(labels, value => segments[value]);
    }
    const [now, segment] = [this.#current(), this.names.indexOf(only) + 1];
    return now.map((value, at) => (labels[at] ? segment : value === segment ? 0 : value));
  }

  /** The segments as they are on the screen, without strokes, of which those drawn since are kept for later. */
  #current() {
    const { rest, strokes: drawn } = strokes.split(this.labelmap.get(), this.labelmap.shown);
    if (drawn.some(value => value > 0)) {
      this.strokes = strokes.joined(this.strokes, drawn);
    }
    return rest;
  }

  #remember(step) {
    this.done = [...this.done, step].slice(-STEPS);
  }

  async #segment() {
    const labelmap = this.#needed();
    const model = this.parts.automatic.value;
    if (!model) {
      throw new Error('this server has no model that segments by itself');
    }
    const before = this.#current();
    const { params, mask } = await server.infer(model, labelmap.image.image, { client_id: CLIENT });
    await labelmap.set(this.#named(mask.labels, params.label_names, null));
    this.#remember({ before });
    return `${model}, ${params.latencies.total.toFixed(1)} s`;
  }

  #changeModel() {
    this.interaction = null;
  }

  /** Say what the first mouse button does. */
  #use(mode) {
    this.mode = mode;
    const { toolGroupService } = this.services;
    if (mode?.startsWith('stroke')) {
      points.activate(toolGroupService, false);
      this.labelmap?.select(mode === 'stroke-on' ? strokes.ON : strokes.OFF);
      strokes.activate(toolGroupService);
    } else {
      this.labelmap?.select(this.names.indexOf(this.label) + 1);
      points.activate(toolGroupService, mode !== null);
    }
    this.corner = null;
    for (const name of ['foreground', 'background', 'corner', 'stroke-on', 'stroke-off']) {
      this.node.querySelector(`[name=${name}]`).classList.toggle('on', name === mode);
    }
  }

  /** Two opposite corners make the box that the next points and strokes are kept to. */
  #boxed(dot, voxel) {
    points.remove(dot);
    if (!this.corner) {
      this.corner = voxel;
      this.box = null;
      return `a corner at ${voxel.join(', ')}: click the opposite one, on any slice`;
    }
    const pairs = voxel.map((value, axis) => [value, this.corner[axis]].sort((a, b) => a - b));
    this.corner = null;
    this.box = pairs.flatMap(([low, high]) => [low, high + 1]);
    return `box ${pairs.map(pair => pair.join(' to ')).join(' by ')}: points and strokes are kept to it`;
  }

  async #point(dot) {
    try {
      const labelmap = this.#needed();
      const voxel = labelmap.voxelAt(points.world(dot));
      if (!voxel) {
        throw new Error('that point lies outside the image');
      }
      if (this.mode === 'corner') {
        return this.#boxed(dot, voxel);
      }
      const model = this.parts.clicked.value;
      if (!model) {
        throw new Error('this server has no model that takes points');
      }
      const single = this.info.models[model].type === 'deepgrow';
      const on = this.mode === 'foreground';
      const name = on ? (single ? 'foreground' : this.label) : BACKGROUND;
      points.paint(dot, on ? colour(this.names.indexOf(this.label) + 1) : [230, 230, 230]);
      const before = this.#current();
      this.interaction ??= await server.Interaction.open(model, labelmap.image.image, CLIENT);
      const said = { clicks: { [name]: [voxel] }, label: this.label, ...(this.box ? { roi: this.box } : {}) };
      const { params, mask } = await this.interaction.prompt(said);
      await labelmap.set(this.#named(mask.labels, params.label_names, single ? this.label : null));
      this.#remember({ dot, before });
      return `${name} at ${voxel.join(', ')}; ${model}, ${params.latencies.total.toFixed(1)} s`;
    } catch (error) {
      points.remove(dot);
      throw error;
    }
  }

  async #scribble() {
    const labelmap = this.#needed();
    const model = this.parts.scribbled.value;
    if (!model) {
      throw new Error('this server has no model that takes strokes');
    }
    const before = this.#current();
    if (!this.strokes && !this.box) {
      throw new Error('draw on the structure and beside it first, or set a box');
    }
    const params = { client_id: CLIENT, label_info: strokes.LABEL_INFO, selected_label_name: this.label };
    const given = { ...params, ...(this.box ? { roi: this.box } : {}) };
    const label = this.strokes ?? new Uint8Array(labelmap.size);
    const said = await server.infer(model, labelmap.image.image, given, label);
    await labelmap.set(this.#named(said.mask.labels, {}, this.label));
    this.#remember({ before });
    return `${model}, ${said.params.latencies.total.toFixed(1)} s`;
  }

  async #undo() {
    const last = this.done.at(-1);
    if (!last) {
      return 'there is nothing to undo';
    }
    if (last.dot) {
      await this.interaction?.undo();
      points.remove(last.dot);
    }
    await this.labelmap.set(last.before);
    this.done = this.done.slice(0, -1);
    return 'undone';
  }

  async #save() {
    const labelmap = this.#needed();
    const labels = this.#current();
    const present = new Set(labels);
    const label_info = this.names
      .map((name, at) => ({ name, idx: at + 1 }))
      .filter(one => present.has(one.idx));
    const model = this.parts.clicked.value || this.parts.automatic.value;
    await server.save(labelmap.image.image, labels, { label_info, client_id: CLIENT, model });
    await labelmap.set(labels);
    this.strokes = null;
    return 'saved';
  }

  async #next() {
    const strategy = this.parts.strategy.value;
    const sample = await server.next(strategy, { client_id: CLIENT });
    if (!sample.id) {
      return 'every image is labelled';
    }
    const numbers = Object.entries(sample).filter(([name, value]) => typeof value === 'number' && name !== 'ts');
    const told = numbers.map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`).join(', ');
    const why = `${strategy}: ${this.info.strategies[strategy].description}${told ? ` (${told})` : ''}`;
    sessionStorage.setItem(REASON, JSON.stringify({ id: sample.id, why }));
    const { study } = await server.image(sample.id);
    const to = new URL('rayapp', new URL(window.config.routerBasename, window.location.origin));
    to.searchParams.set('StudyInstanceUIDs', study);
    window.location.assign(to);
    return `${sample.id}, chosen by ${strategy}`;
  }

  #watchViewports() {
    const { viewportGridService } = this.services;
    const { ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY } = viewportGridService.EVENTS;
    return [ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY].map(name => {
      const { unsubscribe } = viewportGridService.subscribe(name, () => {
        if (this.names && !this.busy && this.#shown() !== this.labelmap?.displaySet) {
          this.#run('opening…', () => this.#open());
        }
      });
      return unsubscribe;
    });
  }

  #watchKeys() {
    const points = { F: 'foreground', B: 'background', R: 'corner', X: 'stop' };
    const drawing = { D: 'stroke-on', E: 'stroke-off', O: 'scribble' };
    const keys = { A: 'segment', ...points, ...drawing, Z: 'undo', S: 'save', N: 'next', U: 'uncertainty' };
    const pressed = event => {
      const typing = event.target.closest?.('input, textarea, select');
      const name = keys[event.key.toUpperCase()];
      if (!name || typing || !event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      this.node.querySelector(`[name=${name}]`).click();
    };
    document.addEventListener('keydown', pressed, true);
    return () => document.removeEventListener('keydown', pressed, true);
  }
}
