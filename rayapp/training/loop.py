"""Run: one training from its request to its result; each worker executes one.

An epoch visits every training case once, divided among the workers; an iteration is one step of the optimiser, made by
all of them together. Validation cases are divided too, and their Dice scores summed over workers. Rank 0 alone writes
the report and the checkpoints and evaluates the result. `Host.stopped` is called before each iteration and each
validation case, the same number of times in every worker.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed
from itertools import islice
from typing import Any

import torch

from rayapp.errors import BadRequest, RayappError
from rayapp.models.networks import build, save_weights
from rayapp.models.store import ModelVersion
from rayapp.training import checkpoint
from rayapp.training.case_scores import CaseScore, compared, scores_of
from rayapp.training.cases import MIN_PAIRS, Case, Cases, bad_pairs, digest_of, name_of, too_few
from rayapp.training.checkpoint import State
from rayapp.training.design import Design, broadcast_design
from rayapp.training.feed import Batch, Feed
from rayapp.training.learner import Learner, mean_of
from rayapp.training.length import Length
from rayapp.training.metrics import Metrics, key_metric
from rayapp.training.options import Options
from rayapp.training.recipe import Evaluation, Recipe
from rayapp.training.run_report import RunReport
from rayapp.training.start import chosen_design, fine_tuned
from rayapp.training.train_task import Host, Pair, Progress, TrainRequest, TrainResult
from rayapp.training.validator import Validator

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
MAX_EVALUATED = 64
"""Largest number of validation cases that a finished model and the baseline are evaluated on."""


class Run:
    """One worker of a run."""

    def __init__(self, task: Recipe[Any], request: TrainRequest, host: Host) -> None:
        """Prepare the run: restore its checkpoint or choose a design, split the data, build the network.

        Args:
            task: The recipe.
            request: The run.
            host: The worker's environment.

        Raises:
            BadRequest: For params or data that cannot be trained with.
        """
        self._task, self._request, self._host = task, request, host
        self._options: Options = task.options.over(request.params).bounded(host.device.type)
        restored = self._restore()
        pairs = self._usable(sorted(request.pairs, key=name_of), fresh=restored is None)
        self._design = (
            Design.of(self._state.design, guidance=task.guidance_channels)
            if self._state.design
            else broadcast_design(host, lambda: self._chosen_design(pairs), guidance=task.guidance_channels)
        )
        self._state.design = self._design.card()
        self._options = self._options.planned(self._design.plan)
        parent = self._parent()
        if parent is not None:
            self._options = fine_tuned(self._options, task.options)
        self._train, self._val = task.partition(pairs, self._options)
        self._feed = Feed(
            cases=Cases(
                self._train,
                self._read,
                capacity=self._cache_bytes(len(self._train)),
                held=self._options.train_batch_size,
            ),
            examples=task.examples(self._design, self._options),
            batch_size=self._options.train_batch_size,
            seed=self._options.seed,
            rank=host.rank,
            world_size=host.world_size,
            visits=task.visits(self._design),
        )
        own = self._val[host.rank :: host.world_size]
        cases = Cases(own, self._read, capacity=self._cache_bytes(len(self._val)))
        self._validator = Validator(task, self._design, self._options, host, cases=cases, count=len(self._val))
        self._length = Length(self._options, host)
        self._steps = self._steps_left(0)
        try:
            self._learner = Learner(
                task,
                self._design,
                self._options,
                host,
                steps=self._length.steps(self._steps),
                timed=self._length.timed,
            )
            if parent is not None and restored is None:
                self._learner.start_from(parent)
        except RayappError as error:
            raise BadRequest(f"the network cannot be built: {error.detail}") from error
        self._best: dict[str, Any] | None = None
        if restored is not None:
            self._learner.restore(restored["learner"])
            self._best = restored["best"]
        later = max(0, self._options.max_epochs - self._state.epoch - 1) * self._steps
        self._state.iterations = self._state.iteration + self._steps_left(self._state.consumed) + later
        self._done = self._length.done(self._state)
        self._report: RunReport | None = None
        if host.rank == 0:
            self._report = RunReport(request.folder, model=request.model, epochs=self._options.max_epochs)
            self._report.design(self._state.design)

    def train(self) -> TrainResult | None:
        """Train to the end.

        Returns:
            The result on rank 0; None on other ranks, or when the run was stopped.
        """
        try:
            if self._parent() is not None and self._state.best is None:
                metrics = self._validated()  # the first candidate is the parent itself
                if metrics is None:
                    return None
                self._best_yet(key_metric(metrics))
            while not self._finished():
                if not (self._train_epoch() and self._end_epoch()):
                    return None
            return None if self._report is None else self._result(self._report)
        finally:
            if self._report is not None:
                self._report.close()

    # Preparation

    def _usable(self, pairs: Sequence[Pair], *, fresh: bool) -> list[Pair]:
        """The pairs to train with.

        Args:
            pairs: The labelled images.
            fresh: True for a run that starts; all pairs are then read, and bad ones excluded if the options allow it.

        Raises:
            BadRequest: Naming every pair that cannot be trained with, or if fewer than two can.
        """
        if fresh and len(pairs) >= MIN_PAIRS:
            bad = bad_pairs(pairs, self._task.check)
            if bad and not self._options.skip_bad:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
                raise BadRequest(
                    f"{len(bad)} of {len(pairs)} images cannot be trained with (skip_bad leaves them out): {reasons}"
                )
            self._state.left_out = bad
        usable = [pair for pair in pairs if name_of(pair) not in self._state.left_out]
        if len(usable) < MIN_PAIRS:
            without = f", without {', '.join(self._state.left_out)}" if self._state.left_out else ""
            raise too_few(len(usable), without)
        return usable

    def _chosen_design(self, pairs: Sequence[Pair]) -> Design:
        return chosen_design(self._task, self._request, self._options, pairs, self._host.device)

    def _parent(self) -> ModelVersion | None:
        """The version that the design fine-tunes; None if it trains from scratch."""
        parent = self._request.parent
        return parent if parent is not None and self._design.plan.get("from") == parent.version else None

    def _restore(self) -> dict[str, Any] | None:
        """Restore the run's progress from its newest checkpoint, if it has one.

        Returns:
            The checkpoint's tensors, or None.
        """
        folder = self._host.resume()
        if folder is None:
            self._state = State()
            return None
        self._state, tensors = checkpoint.load(folder)
        self._state.resumed += 1
        logger.info("training resumes at iteration %d", self._state.iteration)
        return tensors

    def _read(self, pair: Pair) -> Case:
        return self._task.read(pair, self._design)

    def _cache_bytes(self, pairs: int) -> int:
        """Size of the cache for this many of the run's pairs, in bytes."""
        return (self._options.cache << 20) * pairs // (len(self._train) + len(self._val))

    def _steps_left(self, consumed: int) -> int:
        return -(-self._feed.batches(consumed) // self._options.accumulate)

    # Epochs

    def _finished(self) -> bool:
        patience = self._options.early_stop_patience
        return self._done >= 1 or 0 < patience <= self._state.validations_since

    def _checkpoint_due(self) -> bool:
        return self._state.iteration - self._state.kept >= self._options.checkpoint_every

    def _train_epoch(self) -> bool:
        """Train for one epoch, or the rest of it after a resumption, or until the run ends; False when stopped."""
        state, options = self._state, self._options
        per_batch = options.train_batch_size * self._host.world_size
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
            state.consumed = min(state.consumed + per_batch * len(batches), len(self._feed))
            state.seconds += time.monotonic() - began
            began = time.monotonic()
            self._advance()
            self._report_progress(loss, save=self._checkpoint_due() and state.consumed < len(self._feed))
            if self._done >= 1:
                break
        return True

    def _advance(self) -> None:
        """Record the run's progress."""
        self._done = self._length.done(self._state)
        if self._length.timed:
            self._learner.advance(self._done)

    def _end_epoch(self) -> bool:
        """Validate, report and save a checkpoint, each when it is due; False when stopped."""
        state = self._state
        state.epoch, state.consumed = state.epoch + 1, 0
        loss = sum(self._losses) / max(1, len(self._losses))
        self._advance()
        if not self._length.validation_due(state, self._done):
            self._report_progress(loss, save=self._checkpoint_due())
            return True
        metrics = self._validated()
        if metrics is None:
            return False
        self._advance()
        metric = key_metric(metrics)
        better = self._best_yet(metric)
        train = _by_name(self._task.labels, mean_of(self._scores))
        row = {"loss": loss, "rate": self._learner.rate, "train": train, "val": metrics, "metric": metric}
        state.rows.append({"epoch": state.epoch, "iteration": state.iteration, **row})
        if self._report is not None:
            self._report.epochs = self._length.epochs(state, self._done)
            self._report.validated(state)
        self._report_progress(loss, save=better or self._finished() or self._checkpoint_due())
        return True

    def _best_yet(self, metric: float) -> bool:
        """Keep the weights if their validation metric is the best so far; True if it is."""
        state = self._state
        if state.best is not None and metric <= state.best:
            state.validations_since += 1
            return False
        state.best, state.best_epoch, state.validations_since = metric, state.epoch, 0
        self._best = self._learner.weights()
        return True

    def _validated(self) -> Metrics | None:
        """Validation metrics, with the time they took recorded; None when stopped."""
        state, began = self._state, time.monotonic()
        metrics = self._validator.metrics(self._learner)
        spent = time.monotonic() - began
        state.seconds, state.validating = state.seconds + spent, state.validating + spent
        state.validated, state.validations = self._done, state.validations + 1
        return metrics

    def _report_progress(self, loss: float, *, save: bool) -> None:
        """Report progress to the host, with a checkpoint if one is to be saved."""
        state, host = self._state, self._host
        if not self._length.in_epochs:
            state.iterations = max(state.iteration, round(state.iteration / max(self._done, 1e-9)))
        epochs = self._length.epochs(state, self._done)
        progress = Progress(
            epoch=min(state.epoch + (state.consumed > 0), epochs),
            epochs=epochs,
            iteration=state.iteration,
            iterations=state.iterations,
            loss=loss,
            metric=state.rows[-1]["metric"] if state.rows else None,
            best=state.best,
            seconds_left=self._length.seconds_left(state, self._done),
        )
        if not save:
            host.report(progress)
            return
        state.kept = state.iteration
        folder = self._request.folder / "checkpoint"
        if host.rank == 0:
            checkpoint.save(folder, state, {"learner": self._learner.state(), "best": self._best})
        host.report(progress, checkpoint=folder)
        if host.rank == 0:
            shutil.rmtree(folder)

    # Result

    def _result(self, report: RunReport) -> TrainResult:
        """Write the best weights, and evaluate them and the baseline as they would be served."""
        network = build(self._design.network)
        network.load_state_dict(self._best or self._learner.weights())
        weights = self._request.folder / WEIGHTS
        save_weights(network, weights)
        candidate = ModelVersion(name=self._request.model, version="candidate", weights=weights, card=self._card())
        metrics, scores = self._evaluate(candidate, report)
        before = self._baseline()
        comparison = None if before is None else compared(scores, before[1])
        card = {**candidate.card, "metrics": metrics, **({"compared": comparison} if comparison else {})}
        stats = report.write(self._state, finished=True)
        report.finish(card, comparison)
        return TrainResult(
            weights=weights,
            metric=key_metric(metrics),
            baseline=None if before is None else key_metric(before[0]),
            card=card,
            stats=stats,
        )

    def _baseline(self) -> tuple[Metrics, list[CaseScore]] | None:
        """The version in production on the same cases; None if there is none or it cannot be evaluated."""
        version = self._request.baseline
        if version is None or not self._task.can_fine_tune(version):
            return None
        try:
            return self._evaluate(version)
        except RayappError:
            logger.exception("the version in production could not be evaluated")
            return None

    def _evaluate(self, version: ModelVersion, report: RunReport | None = None) -> tuple[Metrics, list[CaseScore]]:
        """A version's metrics, and its scores on each validation case, which a report shows."""
        scores: list[CaseScore] = []

        def scored(evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
            for evaluation in evaluations:
                own = scores_of(evaluation, self._task.labels, distances=report is not None)
                scores.extend(own)
                if report is not None:
                    report.evaluated(own, evaluation, self._task.labels)
                yield evaluation

        evaluations = self._task.evaluate(version, self._val[:MAX_EVALUATED], self._options)
        return self._task.tally(scored(evaluations)).means(), scores

    def _card(self) -> dict[str, Any]:
        state, parent = self._state, self._parent()
        return {
            "description": self._task.description,
            **self._design.card(),
            "data": {
                "hash": digest_of([*self._train, *self._val]),
                "training": len(self._train),
                "validation": len(self._val),
                **({"left_out": state.left_out} if state.left_out else {}),
            },
            "config": self._options.config(),
            "seed": self._options.seed,
            "code": f"rayapp {installed('rayapp')}, torch {torch.__version__}, monai {installed('monai')}",
            "trained": state.trained(None if parent is None else parent.version),
        }


def _chunks(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    while chunk := list(islice(batches, size)):
        yield chunk


def _by_name(labels: Mapping[str, int], scores: Sequence[float]) -> dict[str, float]:
    """Dice score by structure, and their mean; structures without a score are left out."""
    valid = {name: score for name, score in zip(labels, scores, strict=False) if not math.isnan(score)}
    return {"mean": sum(valid.values()) / len(valid) if valid else 0.0, **valid}
