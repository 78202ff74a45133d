"""Train the promptable network on random scenes: `python -m rayapp.training.synthetic.train FOLDER`.

Scenes come from processes of their own. Each answer in training is also the next turn's previous mask, so every pass
through the network teaches. A checkpoint in the folder holds all that is needed to go on later, on this machine or
another; the log is one line of JSON for each report.
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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayapp.models.promptable import Promptable, channels_last
from rayapp.training.synthetic.examples import Case, cases
from rayapp.training.synthetic.trials import Trial, load_trials, score
from rayapp.training.synthetic.turns import Turn, following, opening

BATCH = {32: 6, 48: 3, 64: 2}
"""Views in a step, by their edge in voxels."""
POOL = 240
"""Cases of each edge that are kept to draw from."""
REUSE = 5
"""Samples for each case that is made: in two views, inverted, and with corrections."""


@dataclass
class Options:
    """How to train.

    Attributes:
        folder: for the checkpoint and the log.
        widths, tail: the network's, see `Promptable`.
        edges: of the views, voxels; one is drawn for each step.
        rate: the learning rate, after a warm-up; it falls with the root of the samples from `settle` samples on.
        seed: of scenes, prompts and weights.
        minutes: how long; None for until stopped.
        trials: a folder of real structures to validate on, see `trials`; None without.
        every: samples between validations.
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
    generators: int = 1
    threads: int = 2


@dataclass
class Score:
    """Running sums between two reports."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Trainer:
    """The network in training, its average, and the turns that wait to be taken."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.network = channels_last(Promptable(3, options.widths, options.tail))
        self.average = channels_last(Promptable(3, options.widths, options.tail))
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(self.network.parameters(), options.rate, weight_decay=1e-4, fused=True)
        self.samples = 0
        self.steps = 0
        self.seconds = 0.0
        self.cpu = 0.0
        self.resume()
        self.random = np.random.default_rng([options.seed, self.samples])
        self.pools: dict[int, deque[Case]] = {edge: deque(maxlen=POOL) for edge in options.edges}
        self.waiting: dict[int, deque[Turn]] = {edge: deque(maxlen=64) for edge in options.edges}

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.options.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if it has one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.samples, self.steps = state["samples"], state["steps"]
        self.seconds, self.cpu = state["seconds"], state["cpu"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "samples": self.samples,
            "steps": self.steps,
            "seconds": self.seconds,
            "cpu": self.cpu,
            "seed": self.options.seed,
            "widths": list(self.options.widths),
            "tail": self.options.tail,
        }
        scratch = self.checkpoint.with_suffix(".part")
        torch.save(state, scratch)
        os.replace(scratch, self.checkpoint)  # noqa: PTH105

    def step(self, score: Score) -> None:
        """Take one batch of turns and learn from it."""
        options = self.options
        edge = int(self.random.choice(options.edges))
        turns = [self._next(edge) for _ in range(BATCH[edge])]
        inputs = torch.from_numpy(np.stack([turn.inputs() for turn in turns]))
        truth = torch.from_numpy(np.stack([turn.truth() for turn in turns]))
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        logits, quality, length = self.network(inputs.contiguous(memory_format=torch.channels_last_3d))
        loss, dice, error = losses(turns, truth, logits, quality, length)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self._follow()
        self.steps += 1
        self.samples += len(turns)
        score.losses.append(float(loss.detach()))
        score.judged.append(error)
        answers = torch.sigmoid(logits.detach()).numpy()
        for turn, answer, got in zip(turns, answers, dice, strict=True):
            (score.later if turn.number else score.first).append(got)
            after = following(self.random, turn, answer)
            if after is not None:
                self.waiting[edge].append(after)

    def _next(self, edge: int) -> Turn:
        waiting = self.waiting[edge]
        if len(waiting) >= 4 and self.random.random() < 0.5:
            turn = waiting[at := int(self.random.integers(len(waiting)))]
            del waiting[at]
            return turn
        pool = self.pools[edge]
        return opening(self.random, pool[int(self.random.integers(len(pool)))])

    def _rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 100)
        return self.options.rate * warm * min(1.0, float(np.sqrt(self.options.settle / max(1, self.samples))))

    def _follow(self) -> None:
        decay = min(0.9985, (1 + self.steps) / (20 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)


def losses(
    turns: Sequence[Turn], truth: Tensor, logits: Tensor, quality: Tensor, length: Tensor
) -> tuple[Tensor, list[float], float]:
    """The loss of a batch, each answer's Dice in its view, and the judge's mean error.

    The judge is to say the answer's Dice against the whole structure, also where that goes beyond the view; patches
    are not judged.
    """
    axes = (1, 2, 3)
    probability = torch.sigmoid(logits)
    overlap = (probability * truth).sum(axes)
    soft = 1 - (2 * overlap + 1) / (probability.sum(axes) + truth.sum(axes) + 1)
    with torch.no_grad():
        answer = (probability > 0.5).float()
        shared = (answer * (truth > 0.5)).sum(axes)
        within = (truth > 0.5).sum(axes)
        whole = torch.tensor([turn.case.volume / turn.look.view.spacing**3 for turn in turns])
        dice = 2 * shared / (answer.sum(axes) + within).clamp(min=1)
        target = 2 * shared / (answer.sum(axes) + torch.maximum(whole, within)).clamp(min=1)
        longest = torch.tensor([np.log(turn.case.length / turn.look.view.size) for turn in turns])
        judged = torch.tensor([float(turn.look.prompted) for turn in turns])
        error = ((torch.sigmoid(quality) - target).abs() * judged).sum() / judged.sum().clamp(min=1)
    judging = functional.binary_cross_entropy_with_logits(quality, target.float(), reduction="none")
    sizing = functional.smooth_l1_loss(length, longest.float(), reduction="none")
    heads = ((judging + 0.3 * sizing) * judged).mean()
    loss = functional.binary_cross_entropy_with_logits(logits, truth) + soft.mean() + 0.5 * heads
    return loss, [float(value) for value in dice], float(error)


def _generate(out: Any, seed: Sequence[int], edges: Sequence[int]) -> None:
    """Make cases until the training is gone."""
    os.setsid()  # a background process of its own to the scheduler
    torch.set_num_threads(1)
    parent = os.getppid()
    for case in cases(list(seed), edges):
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
    trainer = Trainer(options)
    trials: list[Trial] = load_trials(options.trials) if options.trials else []
    context = multiprocessing.get_context("spawn")
    feed = context.Queue(48)

    def started(number: int) -> Any:
        seed = (options.seed, trainer.samples, number)
        maker = context.Process(target=_generate, args=(feed, seed, tuple(options.edges)), daemon=True)
        maker.start()
        return maker

    makers = [started(number) for number in range(options.generators)]
    stopped = threading.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: stopped.set())
    start, before = time.monotonic(), trainer.seconds
    used = trainer.cpu - time.process_time()
    seen, since, running = trainer.samples, time.monotonic(), Score()
    fed, begun, due = 0, trainer.samples, trainer.samples + options.every
    while not stopped.is_set() and (options.minutes is None or time.monotonic() - start < options.minutes * 60):
        while fed < 64 + (trainer.samples - begun) / REUSE:
            short = min(len(pool) for pool in trainer.pools.values()) < 12
            try:
                case = feed.get(timeout=60) if short else feed.get_nowait()
            except queue.Empty:
                break
            trainer.pools[case.looks[0].view.edge].append(case)
            fed += 1
        trainer.step(running)
        trainer.seconds = before + time.monotonic() - start
        trainer.cpu = used + time.process_time()
        if trainer.steps % 100 == 0:
            for number, maker in enumerate(makers):
                if not maker.is_alive():
                    _log(options, samples=trainer.samples, generator_ended=maker.exitcode)
                    makers[number] = started(number)
            rate = (trainer.samples - seen) / (time.monotonic() - since)
            _log(
                options,
                samples=trainer.samples,
                minutes=round(trainer.seconds / 60, 1),
                cpu=round(trainer.cpu / 60, 1),
                rate=round(rate, 2),
                loss=_mean(running.losses),
                first=_mean(running.first),
                later=_mean(running.later),
                judge=_mean(running.judged),
                cases=fed,
            )
            seen, since, running = trainer.samples, time.monotonic(), Score()
            trainer.save()
        if trials and trainer.samples >= due:
            due = trainer.samples + options.every
            _log(options, samples=trainer.samples, cpu=round(trainer.cpu / 60, 1), **score(trainer.average, trials))
    trainer.save()
    if trials and not stopped.is_set():
        _log(options, samples=trainer.samples, cpu=round(trainer.cpu / 60, 1), **score(trainer.average, trials))
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
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    given["tail"] = given["tail"] or None
    train(Options(**given))


if __name__ == "__main__":
    main()
