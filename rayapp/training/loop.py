"""Run: one training from its request to its result, in each worker.

An epoch visits every training case once, shared out among the workers; an iteration is one step of the optimiser, by
all of them together. Validation is shared out too, its sums added up. Rank 0 alone keeps the record, writes the
checkpoints and measures the outcome. The host is asked whether to stop before each iteration and each validation
case, as often in every worker.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version as installed
from itertools import islice
from typing import Any

import torch

from rayapp.errors import BadRequest, RayappError
from rayapp.models.networks import build, save_weights
from rayapp.models.store import ModelVersion
from rayapp.training import checkpoint
from rayapp.training.cases import Case, Cases, digest_of, name_of
from rayapp.training.checkpoint import State
from rayapp.training.design import GRID, Design, agreed
from rayapp.training.feed import Batch, Feed
from rayapp.training.learner import Learner, mean_of
from rayapp.training.metrics import Figures, Tally, figure
from rayapp.training.options import Options
from rayapp.training.recipe import Answer, Recipe
from rayapp.training.run_report import Record
from rayapp.training.train_task import Host, Pair, Progress, TrainRequest, TrainResult

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
MEASURED = 64
"""Validation cases, at most, that a finished model and the baseline are asked on their own grids."""


class Run:
    """One worker of a run. Raises BadRequest for params or data that cannot be trained with."""

    def __init__(self, task: Recipe[Any], request: TrainRequest, host: Host) -> None:
        self._task, self._request, self._host = task, request, host
        self._options: Options = task.options.over(request.params)
        pairs = sorted(request.pairs, key=name_of)
        if len(pairs) < 2:
            raise BadRequest(f"training needs two labelled images or more, one to validate with; here are {len(pairs)}")
        kept = self._kept()
        self._design = (
            Design.of(self._state.design, guidance=task.guidance_channels)
            if self._state.design
            else agreed(host, lambda: self._designed(pairs), guidance=task.guidance_channels)
        )
        self._state.design = self._design.card()
        self._options = self._options.planned(self._design.plan)
        parent = self._parent()
        self._train, self._val = task.partition(pairs, self._options)
        self._feed = Feed(
            cases=Cases(self._train, self._read, capacity=self._share(len(self._train))),
            examples=task.examples(self._design, self._options),
            batch_size=self._options.train_batch_size,
            seed=self._options.seed,
            rank=host.rank,
            world_size=host.world_size,
        )
        mine = self._val[host.rank :: host.world_size]
        self._val_cases = Cases(mine, self._read, capacity=self._share(len(self._val)))
        self._steps = self._steps_left(0)
        try:
            steps = self._options.max_epochs * self._steps
            self._learner = Learner(task, self._design, self._options, host, steps=steps)
            if parent is not None and kept is None:
                self._learner.start_from(parent)
        except RayappError as error:
            raise BadRequest(f"the network cannot be made: {error.detail}") from error
        self._best: dict[str, Any] | None = None
        if kept is not None:
            self._learner.restore(kept["learner"])
            self._best = kept["best"]
        later = max(0, self._options.max_epochs - self._state.epoch - 1) * self._steps
        self._state.iterations = self._state.iteration + self._steps_left(self._state.consumed) + later
        self._record = Record(request.folder, epochs=self._options.max_epochs) if host.rank == 0 else None
        if self._record is not None:
            self._record.design(self._state.design)

    def go(self) -> TrainResult | None:
        """Train to the end; the result on rank 0, None on other ranks or when stopped."""
        try:
            while not self._over():
                if not (self._epoch() and self._validate()):
                    return None
            return None if self._record is None else self._result(self._record)
        finally:
            if self._record is not None:
                self._record.close()

    # Before

    def _designed(self, pairs: Sequence[Pair]) -> Design:
        """What suits the data or, where that is not too different, the parent's, with a word on which it is."""
        task, params, parent = self._task, self._request.params, self._request.parent
        device = self._host.device
        design = task.design(pairs, params, device=device)
        start = "it starts afresh: " + ("there is no version to go on from" if parent is None else "as asked for")
        if parent is not None and self._options.pretrained:
            fixed = [name for name in GRID if name in task.overrides(params)]
            against = design.objection(parent.card, fixed=fixed) if task.continues(parent) else "it has other labels"
            if against is None:
                its = task.design(pairs, {**params, **{name: parent.card[name] for name in GRID}}, device=device)
                if its.network == parent.card["network"]:
                    plan = {**its.plan, "from": parent.version, "start": f"it goes on from {parent.version}"}
                    return replace(its, plan=plan)
                against = "the task designs another network"
            start = f"it starts afresh and not from {parent.version}: {against}"
        return replace(design, plan={**design.plan, "start": start})

    def _parent(self) -> ModelVersion | None:
        """The version that the design goes on from."""
        parent = self._request.parent
        return parent if parent is not None and self._design.plan.get("from") == parent.version else None

    def _kept(self) -> dict[str, Any] | None:
        """The tensors of the checkpoint to go on from; its state becomes the run's."""
        folder = self._host.resume()
        if folder is None:
            self._state = State()
            return None
        self._state, tensors = checkpoint.load(folder)
        self._state.resumed += 1
        logger.info("training goes on from iteration %d", self._state.iteration)
        return tensors

    def _read(self, pair: Pair) -> Case:
        return self._task.read(pair, self._design)

    def _share(self, pairs: int) -> int:
        """Bytes of the cache for so many of this run's pairs."""
        return (self._options.cache << 20) * pairs // (len(self._train) + len(self._val))

    def _steps_left(self, consumed: int) -> int:
        return -(-self._feed.batches(consumed) // self._options.accumulate)

    # Epochs

    def _over(self) -> bool:
        patience = self._options.early_stop_patience
        return self._state.epoch >= self._options.max_epochs or 0 < patience <= self._state.validations_since

    def _due(self) -> bool:
        return self._state.iteration - self._state.kept >= self._options.checkpoint_every

    def _epoch(self) -> bool:
        """Train for one epoch, or for what is left of it; False when stopped."""
        state, options = self._state, self._options
        consumed_at_once = options.train_batch_size * self._host.world_size
        self._losses: list[float] = []
        self._scores: list[list[float]] = []
        began = time.monotonic()
        for batches in _chunks(self._feed.epoch(state.epoch, consumed=state.consumed), options.accumulate):
            if self._host.stopped():
                return False
            loss, scores = self._learner.step(batches, state.iteration)
            self._losses.append(loss)
            self._scores.append(scores)
            state.iteration += 1
            state.consumed = min(state.consumed + consumed_at_once * len(batches), len(self._train))
            state.seconds += time.monotonic() - began
            began = time.monotonic()
            self._tell(loss, keep=self._due() and state.consumed < len(self._train))
        return True

    def _validate(self) -> bool:
        """Close the epoch: measure, note, keep; False when stopped."""
        state, options = self._state, self._options
        state.epoch, state.consumed = state.epoch + 1, 0
        loss = sum(self._losses) / max(1, len(self._losses))
        if state.epoch % options.val_interval and state.epoch < options.max_epochs:
            self._tell(loss, keep=self._due())
            return True
        began = time.monotonic()
        figures = self._figures()
        state.seconds += time.monotonic() - began
        if figures is None:
            return False
        metric = figure(figures)
        better = state.best is None or metric > state.best
        if better:
            state.best, state.best_epoch, state.validations_since = metric, state.epoch, 0
            self._best = self._learner.weights()
        else:
            state.validations_since += 1
        train = _by_name(self._task.labels, mean_of(self._scores))
        row = {"loss": loss, "rate": self._learner.rate, "train": train, "val": figures, "metric": metric}
        state.rows.append({"epoch": state.epoch, "iteration": state.iteration, **row})
        if self._record is not None:
            self._record.validated(state)
        self._tell(loss, keep=better or self._over() or self._due())
        return True

    def _figures(self) -> Figures | None:
        """Validate on the network's grid; None when stopped."""
        infer = self._task.inferer(self._design)

        def predict(images: torch.Tensor) -> torch.Tensor:
            return infer(images, self._learner.predict)

        tally = Tally(self._task.measurements, tuple(self._task.labels))
        for step in range(-(-len(self._val) // self._host.world_size)):
            if self._host.stopped():
                return None
            if step < len(self._val_cases):
                tally.merge(self._task.tally(self._task.validate(self._val_cases[step], predict, self._options)))
        if self._host.world_size > 1:
            tally.share(self._host.device)
        return tally.means()

    def _tell(self, loss: float, *, keep: bool) -> None:
        """Report, with a checkpoint if one is to be kept."""
        state, host = self._state, self._host
        left = state.seconds / state.iteration * (state.iterations - state.iteration)
        progress = Progress(
            epoch=min(state.epoch + (state.consumed > 0), self._options.max_epochs),
            epochs=self._options.max_epochs,
            iteration=state.iteration,
            iterations=state.iterations,
            loss=loss,
            metric=state.rows[-1]["metric"] if state.rows else None,
            best=state.best,
            seconds_left=left,
        )
        if not keep:
            host.report(progress)
            return
        state.kept = state.iteration
        folder = self._request.folder / "checkpoint"
        if host.rank == 0:
            checkpoint.save(folder, state, {"learner": self._learner.state(), "best": self._best})
        host.report(progress, checkpoint=folder)
        if host.rank == 0:
            shutil.rmtree(folder)

    # After

    def _result(self, record: Record) -> TrainResult:
        """Write the best weights, measure them and the baseline as they serve, and describe them."""
        network = build(self._design.network)
        network.load_state_dict(self._best or self._learner.weights())
        weights = self._request.folder / WEIGHTS
        save_weights(network, weights)
        made = ModelVersion(name=self._request.model, version="candidate", weights=weights, card=self._card())
        figures = self._asked(made, picture=True)
        return TrainResult(
            weights=weights,
            metric=figure(figures),
            baseline=self._baseline(),
            card={**made.card, "metrics": figures},
            stats=record.write(self._state, over=True),
        )

    def _baseline(self) -> float | None:
        version = self._request.baseline
        if version is None or not self._task.continues(version):
            return None
        try:
            return figure(self._asked(version, picture=False))
        except RayappError:
            logger.exception("the serving version could not be measured")
            return None

    def _asked(self, version: ModelVersion, *, picture: bool) -> Figures:
        answers = self._task.answers(version, self._val[:MEASURED], self._options)
        return self._task.tally(self._pictured(answers) if picture else answers).means()

    def _pictured(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """The same answers; the first is drawn."""
        for number, answer in enumerate(answers):
            if number == 0 and self._record is not None:
                found = next(iter(answer.found.values()))
                self._record.overlay(answer.volume, answer.truth, found, self._task.labels)
            yield answer

    def _card(self) -> dict[str, Any]:
        state, parent = self._state, self._parent()
        return {
            "description": self._task.description,
            **self._design.card(),
            "data": {
                "hash": digest_of([*self._train, *self._val]),
                "training": len(self._train),
                "validation": len(self._val),
            },
            "config": self._options.config(),
            "seed": self._options.seed,
            "code": f"rayapp {installed('rayapp')}, torch {torch.__version__}, monai {installed('monai')}",
            "trained": {
                "epochs": state.epoch,
                "best_epoch": state.best_epoch,
                "iterations": state.iteration,
                "seconds": round(state.seconds),
                "resumed": state.resumed,
                "from": None if parent is None else parent.version,
            },
        }


def _chunks(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last maybe shorter."""
    while chunk := list(islice(batches, size)):
        yield chunk


def _by_name(labels: Mapping[str, int], scores: Sequence[float]) -> dict[str, float]:
    """Dice by structure and on average; those that were not met are left out."""
    known = {name: score for name, score in zip(labels, scores, strict=False) if not math.isnan(score)}
    return {"mean": sum(known.values()) / len(known) if known else 0.0, **known}
