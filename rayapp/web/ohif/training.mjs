/** Training from the viewer: start, follow, stop. */

import { element, fill, options } from './dom.mjs';
import * as server from './server.mjs';

const OVER = ['DONE', 'ERROR', 'STOPPED'];

export class Training {
  /** @param {(text: string, act: () => Promise<string>) => void} run what does one thing of the panel's at a time */
  constructor(run) {
    this.run = run;
    this.job = null;
    this.following = null;
    this.parts = {
      trainer: element('select', { name: 'trainer' }),
      bar: element('progress', { max: 1, value: 0, hidden: true }),
      said: element('div', { className: 'trained' }),
    };
    const button = (name, text, doing, act) =>
      element('button', { name, title: text, onclick: () => run(doing, act) }, text);
    this.node = element('div', {});
    fill(
      this.node,
      element('h3', {}, 'Training'),
      this.parts.trainer,
      button('train', 'Train', 'asking for a training…', () => this.#start()),
      button('stop-training', 'Stop', 'stopping…', () => this.#stop()),
      this.parts.bar,
      this.parts.said
    );
  }

  /** Show these trainers, and follow a training that runs already. */
  async show(trainers) {
    options(this.parts.trainer, trainers);
    const jobs = await server.jobs();
    const running = jobs.findLast(job => job.kind === 'train' && !OVER.includes(job.status));
    if (running) {
      this.#follow(running);
    }
  }

  close() {
    this.following?.abort();
  }

  async #start() {
    const trainer = this.parts.trainer.value;
    if (!trainer) {
      throw new Error('this server trains no model');
    }
    this.#follow(await server.train(trainer));
    return `${trainer} is being trained; the images with a saved label count`;
  }

  async #stop() {
    if (!this.job || OVER.includes(this.job.status)) {
      return 'no training runs';
    }
    await server.stop(this.job.id);
    return 'stopped';
  }

  /** Tell each change of the job until it is over; beside all else, so nothing waits for it. */
  async #follow(job) {
    this.following?.abort();
    const following = (this.following = new AbortController());
    this.#tell(job);
    try {
      for await (const now of server.changes(job.id, following.signal)) {
        this.#tell(now);
      }
    } catch (error) {
      if (!following.signal.aborted) {
        this.parts.said.textContent = `no news of the training: ${error.message}`;
      }
    }
  }

  #tell(job) {
    this.job = job;
    const { bar, said } = this.parts;
    const { epoch, epochs, metric, seconds_left } = job.progress ?? {};
    bar.hidden = !epochs || OVER.includes(job.status);
    bar.value = epochs ? (epoch ?? 0) / epochs : 0;
    const numbers = [
      epochs && `epoch ${epoch ?? 0} of ${epochs}`,
      typeof metric === 'number' && `Dice ${metric.toFixed(3)}`,
      typeof seconds_left === 'number' && job.status === 'RUNNING' && `${Math.ceil(seconds_left / 60)} min left`,
    ].filter(Boolean);
    said.textContent = [job.status.toLowerCase(), ...numbers].join(', ');
    said.dataset.status = job.status;
    if (job.status === 'ERROR') {
      said.textContent += `: ${(job.details ?? []).at(-1) ?? ''}`;
    }
  }
}
