"""Train the promptable network on random scenes: `python -m rayapp.training.synthetic.train FOLDER`.

Scenes come from processes of their own. A checkpoint in the folder holds all that is needed to go on later, on this
machine or another; the log is one line of JSON for each report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayapp.training.synthetic.examples import BODIES, cases
from rayapp.training.synthetic.student import BATCH, Score, Student
from rayapp.training.synthetic.trials import Trial, load_trials, score

REUSE = 4
"""Samples for each case that is made: in two views, inverted, and with corrections."""
ENDING = 0.35
"""Share of a training's time in which the learning rate falls to nothing."""


@dataclass
class Options:
    """Settings of the training.

    Attributes:
        folder: for the checkpoint and the log.
        widths, tail: the network's, see `Promptable`.
        edges: of the views, voxels; one is drawn for each step.
        rate: the learning rate, after a warm-up; it falls with the root of the samples from `settle` samples on.
        seed: of scenes, prompts and weights.
        minutes: how long; None for until stopped. The learning rate falls to nothing in the last `ENDING` of it.
        trials: a folder of real structures to validate on, see `trials`; None without.
        every: samples between validations.
        bodies: share of scenes that are laid out as bodies are.
        judge_alone: only the judge learns, see `Student`.
        gallery: a folder of real images to learn from too, see `gallery`; None without.
        start: exported weights to go on from while the folder has no checkpoint; the card beside them says what they
            have seen.
    """

    folder: Path
    widths: Sequence[int] = (24, 64, 128, 192)
    tail: int | None = 8
    edges: Sequence[int] = (32, 48)
    rate: float = 1.5e-3
    settle: int = 40_000
    seed: int = 0
    minutes: float | None = None
    trials: Path | None = None
    every: int = 8_000
    start: Path | None = None
    gallery: Path | None = None
    bodies: float = BODIES
    judge_alone: bool = False
    generators: int = 1
    threads: int = 2


class Training:
    """A student on its way: what it has cost so far, and its checkpoint."""

    def __init__(self, options: Options) -> None:
        self.options = options
        network = {"dimensions": 3, "widths": options.widths, "tail": options.tail}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = Student(
            network, options.edges, seed=options.seed, device=self.device, judge_alone=options.judge_alone
        )
        self.seconds = 0.0
        self.cpu = 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.student.restore(state)
            self.seconds, self.cpu = state["seconds"], state["cpu"]
        elif options.start is not None:
            self._start(options.start)

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.options.folder / "checkpoint.pt"

    def _start(self, weights: Path) -> None:
        seen = json.loads(weights.with_suffix(".json").read_text())["training"]
        self.student.start_from(weights)
        self.student.samples, self.student.steps = seen["samples"], seen["steps"]
        self.cpu = 3600 * seen["processor_hours"]
        for validation in seen["validation"]:
            _log(self.options, **validation)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        options = self.options
        costs = {"seconds": self.seconds, "cpu": self.cpu, "seed": options.seed}
        network = {"widths": list(options.widths), "tail": options.tail}
        scratch = self.checkpoint.with_suffix(".part")
        torch.save({**self.student.state(), **costs, **network}, scratch)
        os.replace(scratch, self.checkpoint)  # noqa: PTH105

    def rate(self, seconds: float) -> float:
        """The learning rate of the next step, `seconds` after the start."""
        left = 1.0 if self.options.minutes is None else max(0.0, 1 - seconds / (60 * self.options.minutes))
        warm = min(1.0, (self.student.steps + 1) / 100)
        late = float(np.sqrt(self.options.settle / max(1, self.student.samples)))
        return self.options.rate * warm * min(1.0, late) * min(1.0, left / ENDING)


def _generate(out: Any, seed: Sequence[int], edges: Sequence[int], bodies: float, gallery: Sequence[Path]) -> None:
    """Make cases until the training is gone."""
    os.setsid()  # a background process of its own to the scheduler
    torch.set_num_threads(1)
    parent = os.getppid()
    for case in cases(list(seed), edges, bodies=bodies, gallery=gallery):
        while os.getppid() == parent:
            with contextlib.suppress(queue.Full):
                out.put(case, timeout=5)
                break
        else:
            out.cancel_join_thread()
            return


def train(options: Options) -> None:
    """Train until the time is over, SIGTERM or SIGINT, reporting to the log and keeping the checkpoint."""
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    training = Training(options)
    student = training.student
    trials: list[Trial] = load_trials(options.trials) if options.trials else []
    images = sorted(options.gallery.glob("*.npz")) if options.gallery else []
    context = multiprocessing.get_context("spawn")
    feed = context.Queue(48)

    def started(number: int) -> Any:
        seed = (options.seed, student.samples, number)
        given = (feed, seed, tuple(options.edges), options.bodies, images)
        maker = context.Process(target=_generate, args=given, daemon=True)
        maker.start()
        return maker

    makers = [started(number) for number in range(options.generators)]
    stopped = threading.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: stopped.set())
    start, before = time.monotonic(), training.seconds
    used = training.cpu - time.process_time()
    seen, since, running = student.samples, time.monotonic(), Score()
    fed, begun, due = 0, student.samples, student.samples + options.every
    while not stopped.is_set() and (options.minutes is None or time.monotonic() - start < options.minutes * 60):
        while fed < 64 + (student.samples - begun) / REUSE:
            try:
                student.admit(feed.get(timeout=60) if student.short else feed.get_nowait())
            except queue.Empty:
                break
            fed += 1
        if student.short:
            continue
        student.step(training.rate(time.monotonic() - start), running)
        training.seconds = before + time.monotonic() - start
        training.cpu = used + time.process_time()
        if student.steps % 100 == 0:
            for number, maker in enumerate(makers):
                if not maker.is_alive():
                    _log(options, samples=student.samples, generator_ended=maker.exitcode)
                    makers[number] = started(number)
            rate = (student.samples - seen) / (time.monotonic() - since)
            _log(
                options,
                samples=student.samples,
                minutes=round(training.seconds / 60, 1),
                cpu=round(training.cpu / 60, 1),
                rate=round(rate, 2),
                loss=_mean(running.losses),
                first=_mean(running.first),
                later=_mean(running.later),
                judge=_mean(running.judged),
                cases=fed,
            )
            seen, since, running = student.samples, time.monotonic(), Score()
            training.save()
        if trials and student.samples >= due:
            due = student.samples + options.every
            _log(options, samples=student.samples, cpu=round(training.cpu / 60, 1), **score(student.average, trials))
    training.save()
    if trials and not stopped.is_set():
        _log(options, samples=student.samples, cpu=round(training.cpu / 60, 1), **score(student.average, trials))
    for maker in makers:
        maker.terminate()


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else 0.0


def _log(options: Options, **values: Any) -> None:
    line = json.dumps(values)
    print(line, flush=True)
    with (options.folder / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the checkpoint and the log")
    parser.add_argument("--widths", type=int, nargs=4, default=[24, 64, 128, 192])
    parser.add_argument("--tail", type=int, default=8, help="channels at full resolution; 0 for none")
    parser.add_argument("--edges", type=int, nargs="+", default=[32, 48], choices=sorted(BATCH))
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--settle", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--trials", type=Path, help="real structures to validate on, see trials.py")
    parser.add_argument("--every", type=int, default=8_000, help="samples between validations")
    parser.add_argument("--start", type=Path, help="exported weights to go on from in an empty folder")
    parser.add_argument("--gallery", type=Path, help="real images to learn from too, see gallery.py")
    parser.add_argument("--bodies", type=float, default=BODIES, help="share of scenes laid out as bodies are")
    parser.add_argument("--judge-alone", action="store_true", help="teach the judge only; the answers stay")
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    given["tail"] = given["tail"] or None
    train(Options(**given))


if __name__ == "__main__":
    main()
