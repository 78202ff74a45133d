/** The panel: what an annotator does, one thing at a time. */

import { element, fill, options } from './dom.mjs';
import { Labelmap, colour } from './labelmap.mjs';
import * as points from './points.mjs';
import * as server from './server.mjs';

const CLIENT = 'ohif';
const STEPS = 20; // that can be undone
const BACKGROUND = 'background';
const CLICKED = ['deepedit', 'deepgrow'];
const AUTOMATIC = ['segmentation', 'deepedit'];

export class Panel {
  constructor(node, services) {
    this.node = node;
    this.services = services;
    this.labelmap = null;
    this.interaction = null;
    this.done = []; // what can be undone: {dot} of a prompt, {before} of the rest
    this.busy = null;
    this.foreground = true;
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
    this.node.replaceChildren();
  }

  #build() {
    const button = (name, text, title, act) => element('button', { name, title, onclick: act }, text);
    this.parts = {
      image: element('div', { className: 'image' }),
      automatic: element('select', { name: 'automatic' }),
      clicked: element('select', { name: 'clicked', onchange: () => this.#changeModel() }),
      labels: element('div', { className: 'labels' }),
      strategy: element('select', { name: 'strategy' }),
      said: element('div', { className: 'said', role: 'status' }),
    };
    const { parts } = this;
    fill(
      this.node,
      parts.image,
      element('h3', {}, 'Automatic'),
      parts.automatic,
      button('segment', 'Segment', 'Shift+A', () => this.#run('segmenting…', () => this.#segment())),
      element('h3', {}, 'Points'),
      parts.clicked,
      parts.labels,
      element(
        'div',
        {},
        button('foreground', 'On the structure', 'Shift+F', () => this.#place(true)),
        button('background', 'Not on it', 'Shift+B', () => this.#place(false)),
        button('stop', 'No points', 'Shift+X', () => this.#place(null))
      ),
      element(
        'div',
        { className: 'ends' },
        button('undo', 'Undo', 'Shift+Z', () => this.#run('undoing…', () => this.#undo())),
        button('save', 'Save', 'Shift+S', () => this.#run('saving…', () => this.#save()))
      ),
      element('h3', {}, 'Next image'),
      parts.strategy,
      button('next', 'Next', 'Shift+N', () => this.#run('choosing…', () => this.#next())),
      parts.said
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
      .then(said => this.#say(said ?? '', 'done'))
      .catch(error => this.#say(error.message, 'wrong'))
      .finally(() => {
        this.busy = null;
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
    options(this.parts.strategy, Object.keys(this.info.strategies));
    const known = Object.values(this.info.models).flatMap(model => Object.entries(model.labels));
    const values = new Map(known.sort((a, b) => a[1] - b[1]).filter(([name]) => name !== BACKGROUND));
    this.names = [...values.keys()];
    this.label = this.names[0];
    this.#labels();
    points.install(this.services.toolGroupService);
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
    this.#labels();
    this.labelmap?.select(this.names.indexOf(name) + 1);
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
    this.labelmap = this.interaction = null;
    this.done = [];
    const image = await server.imageOfSeries(shown.SeriesInstanceUID);
    const labelmap = new Labelmap(this.services, shown, image, this.names);
    this.parts.image.textContent = image.image;
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
    const [now, segment] = [this.labelmap.get(), this.names.indexOf(only) + 1];
    return now.map((value, at) => (labels[at] ? segment : value === segment ? 0 : value));
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
    const before = labelmap.get();
    const { params, mask } = await server.infer(model, labelmap.image.image, { client_id: CLIENT });
    await labelmap.set(this.#named(mask.labels, params.label_names, null));
    this.#remember({ before });
    return `${model}, ${params.latencies.total.toFixed(1)} s`;
  }

  #changeModel() {
    this.interaction = null;
  }

  #place(foreground) {
    this.foreground = foreground;
    points.activate(this.services.toolGroupService, foreground !== null);
    for (const [name, on] of [['foreground', foreground === true], ['background', foreground === false]]) {
      this.node.querySelector(`[name=${name}]`).classList.toggle('on', on);
    }
  }

  async #point(dot) {
    try {
      const labelmap = this.#needed();
      const voxel = labelmap.voxelAt(points.world(dot));
      if (!voxel) {
        throw new Error('that point lies outside the image');
      }
      const model = this.parts.clicked.value;
      if (!model) {
        throw new Error('this server has no model that takes points');
      }
      const single = this.info.models[model].type === 'deepgrow';
      const name = single ? (this.foreground ? 'foreground' : BACKGROUND) : this.foreground ? this.label : BACKGROUND;
      points.paint(dot, this.foreground ? colour(this.names.indexOf(this.label) + 1) : [230, 230, 230]);
      const before = labelmap.get();
      this.interaction ??= await server.Interaction.open(model, labelmap.image.image, CLIENT);
      const { params, mask } = await this.interaction.prompt({ clicks: { [name]: [voxel] }, label: this.label });
      await labelmap.set(this.#named(mask.labels, params.label_names, single ? this.label : null));
      this.#remember({ dot, before });
      return `${name} at ${voxel.join(', ')}; ${model}, ${params.latencies.total.toFixed(1)} s`;
    } catch (error) {
      points.remove(dot);
      throw error;
    }
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
    const labels = labelmap.get();
    const present = new Set(labels);
    const label_info = this.names
      .map((name, at) => ({ name, idx: at + 1 }))
      .filter(one => present.has(one.idx));
    const model = this.parts.clicked.value || this.parts.automatic.value;
    await server.save(labelmap.image.image, labels, { label_info, client_id: CLIENT, model });
    return 'saved';
  }

  async #next() {
    const strategy = this.parts.strategy.value;
    const sample = await server.next(strategy, { client_id: CLIENT });
    if (!sample.id) {
      return 'every image is labelled';
    }
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
    const keys = { A: 'segment', F: 'foreground', B: 'background', X: 'stop', Z: 'undo', S: 'save', N: 'next' };
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
