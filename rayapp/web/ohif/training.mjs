/** Training from the viewer: start, follow, stop. */

import { button, element, fill, options } from './dom.mjs';
import * as server from './server.mjs';
import { DOING, DONE, PROBLEMS, SECTIONS, says } from './words.mjs';

const OVER = ['DONE', 'ERROR', 'STOPPED'];

export class Training {
  /** @param {import('./next.mjs').Run} run */
  constructor(run) {
    /** @type {server.Job|null} */
    this.job = null;
    /** @type {AbortController|null} */
    this.following = null;
    this.trainer = element('select', { name: 'trainer' });
    this.bar = element('progress', { max: 1, value: 0, hidden: true });
    this.status = element('div', { className: 'trained' });
    this.node = element('div', {});
    fill(
      this.node,
      element('h3', {}, SECTIONS.training),
      this.trainer,
      button('train', () => run(DOING.startingTraining, () => this.#start())),
      button('stop-training', () => run(DOING.stoppingTraining, () => this.#stop())),
      this.bar,
      this.status
    );
  }

  /** Offer these trainers, and follow a training that is running already. @param {string[]} trainers */
  async show(trainers) {
    options(this.trainer, trainers);
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
    const trainer = this.trainer.value;
    if (!trainer) {
      throw new Error(PROBLEMS.noTrainer);
    }
    this.#follow(await server.train(trainer));
    return says.training(trainer);
  }

  async #stop() {
    if (!this.job || OVER.includes(this.job.status)) {
      return DONE.noTraining;
    }
    await server.stop(this.job.id);
    return DONE.trainingStopped;
  }

  /** Show each change of a job until it is over, without making other actions wait. @param {server.Job} job */
  async #follow(job) {
    this.following?.abort();
    const following = (this.following = new AbortController());
    this.#show(job);
    try {
      for await (const changed of server.changes(job.id, following.signal)) {
        this.#show(changed);
      }
    } catch (error) {
      if (!following.signal.aborted) {
        this.status.textContent = PROBLEMS.trainingLost(server.reason(error));
      }
    }
  }

  /** @param {server.Job} job */
  #show(job) {
    this.job = job;
    const progress = job.progress ?? {};
    this.bar.hidden = !progress.epochs || OVER.includes(job.status);
    this.bar.value = progress.epochs ? (progress.epoch ?? 0) / progress.epochs : 0;
    this.status.textContent = says.job(job.status, progress, (job.details ?? []).at(-1) ?? '');
    this.status.dataset.status = job.status;
  }
}
