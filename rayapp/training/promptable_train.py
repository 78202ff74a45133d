"""PromptableTrainTask: fine-tunes the promptable network on the images labelled here.

Training continues from the version in production, or from the weights that ship, in the way these were trained (see
`rayapp.training.synthetic`): simulated prompts and corrections on each labelled structure, in views of all sizes, mixed
with random scenes. A version is evaluated as it is served, by clicks into the largest error on held-out images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from rayapp import __version__
from rayapp.errors import BadRequest, RayappError
from rayapp.imaging.unseen import UNSEEN
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.methods.promptable_infer import PreparedSource, PromptableTask, source_of
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.zoom.view import Source
from rayapp.models.networks import save_weights
from rayapp.models.promptable import Promptable
from rayapp.models.store import ModelVersion
from rayapp.training import checkpoint
from rayapp.training.case_scores import CaseScore, compared
from rayapp.training.cases import MIN_PAIRS, digest_of, name_of, read_pair, split, too_few
from rayapp.training.checkpoint import State
from rayapp.training.metrics import Metrics, dice, key_metric
from rayapp.training.options import PromptableOptions
from rayapp.training.run_report import RunReport
from rayapp.training.synthetic.examples import Case, case, cases
from rayapp.training.synthetic.student import Score, Student
from rayapp.training.synthetic.trials import corrected
from rayapp.training.train_task import Host, Pair, Progress, TrainerInfo, TrainRequest, TrainResult, TrainTask

logger = logging.getLogger(__name__)

STEPS = 100
"""Number of steps in an epoch."""
EDGES = (32, 32, 48)
"""Edges of the training views, in voxels."""
VISIT = 6
"""Number of cases drawn each time an image is read."""
SAMPLES = 5
"""Number of samples drawn from each case."""
CLICKS = 5
"""Number of clicks on each structure in an evaluation."""
MEASURED = 24
"""Largest number of held-out structures in an evaluation."""
MEASUREMENTS = ("dice_after_one_click", "dice_after_clicks")
SMALLEST = 12
"""Least size in voxels of a structure that is trained on."""

Mask = NDArray[np.bool_]


class PromptableTrainTask:
    """The trainer of the promptable network.

    Args:
        shipped: the safetensors file of the weights that ship.
        card: their card.
        scratch: the trainer for requests that start from random weights.
        options: defaults, which a request may override.
    """

    def __init__(
        self, *, shipped: Path, card: Mapping[str, Any], scratch: TrainTask, options: PromptableOptions
    ) -> None:
        self._shipped, self._card, self._scratch, self._options = shipped, card, scratch, options

    @property
    def info(self) -> TrainerInfo:
        """The trainer as `/info/` lists it."""
        description = "Any structure by any prompt: fine-tunes the weights that ship"
        return TrainerInfo(description=description, labels={FOREGROUND: 1}, config=asdict(self._options))

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """See `TrainTask.train`."""
        options = self._options.over(request.params)
        if not options.pretrained:
            return self._scratch.train(request, host)
        return _Run(request, host, options, self._parent(request)).train()

    def _parent(self, request: TrainRequest) -> ModelVersion:
        """The version to fine-tune: the request's parent if it is a promptable network, else the one that ships."""
        if request.parent is not None and is_promptable(request.parent):
            return request.parent
        return ModelVersion(name=request.model, version="shipped", weights=self._shipped, card=self._card)


def is_promptable(version: ModelVersion) -> bool:
    """True if a version is a promptable network."""
    return bool(version.card["network"].get("name") == Promptable.__name__)


@dataclass(frozen=True)
class Labelled:
    """An image and its labels: `source` as the network sees it, `labels` (i, j, k) with the file's own values."""

    source: Source
    labels: NDArray[np.uint8]

    @classmethod
    def read(cls, pair: Pair) -> Labelled:
        """Read a pair; only the image's first channel is used. Raises BadRequest, naming the image."""
        volume, labels, _ = read_pair(pair, None)
        return cls(source_of(volume), labels)

    def structures(self) -> list[int]:
        """Values of the completely annotated structures, without unseen voxels close to them."""
        counts = np.bincount(self.labels.ravel())
        values = [int(value) for value in np.flatnonzero(counts >= SMALLEST) if value not in (0, UNSEEN)]
        return [value for value in values if not _unseen_near(self.labels, value)]


@dataclass
class Lessons:
    """An endless sequence of cases from labelled images, read in random order, and from random scenes.

    Attributes:
        pairs: the images.
        scenes: share of cases that come from random scenes.
        random: source of randomness.

    Raises:
        BadRequest: If no image has a structure.
    """

    pairs: Sequence[Pair]
    scenes: float
    random: np.random.Generator
    _made: Iterator[Case] = field(init=False)

    def __post_init__(self) -> None:
        self._made = cases([int(self.random.integers(2**31))], EDGES)

    def __iter__(self) -> Iterator[Case]:
        labelled_any = True
        while labelled_any:
            labelled_any = False
            for number in self.random.permutation(len(self.pairs)):
                labelled = Labelled.read(self.pairs[number])
                values = labelled.structures()
                for value in self.random.choice(values, VISIT) if values else []:
                    labelled_any = True
                    while self.random.random() < self.scenes:
                        yield next(self._made)
                    yield self._of(labelled, int(value))
        raise BadRequest(f"no image to learn from has a labelled structure of {SMALLEST} voxels or more")

    def _of(self, labelled: Labelled, value: int) -> Case:
        mask = one_part(self.random, labelled.labels == value)
        return case(self.random, labelled.source, mask, int(self.random.choice(EDGES)))


def _unseen_near(labels: NDArray[np.uint8], value: int) -> bool:
    """True if there are unseen voxels in the box around a structure, or next to it."""
    (box,) = ndimage.find_objects((labels == value).view(np.uint8))
    near = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    return bool((labels[near] == UNSEEN).any())


def one_part(random: np.random.Generator, mask: Mask) -> Mask:
    """A structure to point at: the whole if it is mostly connected, else one of its components."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALLEST)
    if count < 2 or not len(large) or sizes.max() >= 0.8 * sizes.sum():
        return mask
    return np.asarray(parts == 1 + int(random.choice(large)))


class _Run:
    """One worker of a run."""

    def __init__(self, request: TrainRequest, host: Host, options: PromptableOptions, parent: ModelVersion) -> None:
        if len(request.pairs) < MIN_PAIRS:
            raise too_few(len(request.pairs))
        self._request, self._host, self._options, self._parent = request, host, options, parent
        self._train, self._val = split(request.pairs, options.val_split)
        self._network = {name: value for name, value in parent.card["network"].items() if name != "name"}
        self._student = Student(
            self._network, EDGES, seed=options.seed + host.rank, device=host.device, together=host.world_size > 1
        )
        self._state = State(iterations=options.max_epochs * STEPS)
        self._best: dict[str, Any] = {}
        kept = host.resume()
        if kept is None:
            try:
                self._student.start_from(parent.weights)
            except RayappError as error:
                raise BadRequest(f"{parent.version} cannot be trained further: {error.detail}") from error
        else:
            self._state, tensors = checkpoint.load(kept)
            self._state.resumed += 1
            self._student.restore(tensors["student"])
            self._best = tensors["best"]
        random = np.random.default_rng([options.seed, host.rank, self._state.iteration])
        self._lessons = iter(Lessons(self._train, options.scenes, random))
        self._report: RunReport | None = None
        if host.rank == 0:
            self._report = RunReport(request.folder, model=request.model, epochs=options.max_epochs)

    def train(self) -> TrainResult | None:
        """Train to the end. Returns the result on rank 0; None on other ranks, or when the run was stopped."""
        try:
            while self._state.epoch < self._options.max_epochs:
                if not self._epoch():
                    return None
            return self._result() if self._report is not None else None
        finally:
            if self._report is not None:
                self._report.close()

    def _epoch(self) -> bool:
        """Take `STEPS` steps and validate; False when stopped."""
        score, state, begun = Score(), self._state, time.monotonic()
        owed = 0.0
        for _ in range(STEPS):
            if self._host.stopped():
                return False
            while owed >= 0 or self._student.short:
                self._student.admit(next(self._lessons))
                owed -= 1
            before = self._student.samples
            self._student.step(self._rate(), score)
            owed += (self._student.samples - before) / SAMPLES
            state.iteration += 1
            state.seconds += time.monotonic() - begun
            begun = time.monotonic()
            self._host.report(self._progress(score.losses[-1]))
        state.epoch += 1
        if self._report is not None and not self._validate(score, self._report):
            return False
        state.seconds += time.monotonic() - begun
        self._keep(score.losses[-1])
        return True

    def _rate(self) -> float:
        """Linear warm-up over the first twentieth, then cosine decay to 0."""
        done = self._state.iteration / self._state.iterations
        return float(self._options.learning_rate * min(1.0, 20 * done + 0.02) * 0.5 * (1 + np.cos(np.pi * done)))

    def _progress(self, loss: float) -> Progress:
        state = self._state
        left = state.seconds / max(1, state.iteration) * (state.iterations - state.iteration)
        return Progress(
            epoch=min(state.epoch + 1, self._options.max_epochs),
            epochs=self._options.max_epochs,
            iteration=max(1, state.iteration),
            iterations=state.iterations,
            loss=loss,
            metric=state.rows[-1]["metric"] if state.rows else None,
            best=state.best,
            seconds_left=left,
        )

    def _validate(self, score: Score, report: RunReport) -> bool:
        """Validate the average of the weights so far; False when stopped."""
        state = self._state
        weights = self._request.folder / ".candidate.safetensors"
        save_weights(self._student.average, weights)
        measured = self._measured(weights)
        weights.unlink()
        if measured is None:
            return False
        metrics, _ = measured
        metric = key_metric(metrics)
        if state.best is None or metric > state.best:
            state.best, state.best_epoch = metric, state.epoch
            self._best = {name: tensor.clone() for name, tensor in self._student.average.state_dict().items()}
        train = {"mean": float(np.mean(score.first + score.later))}
        row = {"epoch": state.epoch, "iteration": state.iteration, "loss": float(np.mean(score.losses))}
        state.rows.append({**row, "rate": self._rate(), "train": train, "val": metrics, "metric": metric})
        report.validated(state)
        return True

    def _keep(self, loss: float) -> None:
        """Report the end of an epoch, with a checkpoint."""
        folder = self._request.folder / "checkpoint"
        tensors = {"student": self._student.state(), "best": self._best}
        if self._host.rank == 0:
            checkpoint.save(folder, self._state, tensors)
        self._host.report(self._progress(loss), checkpoint=folder)

    def _measured(self, weights: Path) -> tuple[Metrics, list[CaseScore]] | None:
        """Dice after one click and after `CLICKS` on held-out structures, as the version is served; None when
        stopped.
        """
        task = PromptableTask(name=self._request.model, weights=weights, network=self._network)
        found: list[CaseScore] = []
        for pair in self._val:
            labelled = Labelled.read(pair)
            for value in labelled.structures():
                if len(found) >= MEASURED * len(MEASUREMENTS):
                    break
                if self._host.world_size == 1 and self._host.stopped():
                    return None
                scores = clicked(task, labelled, labelled.labels == value)
                found += [
                    CaseScore(image=name_of(pair), measurement=name, structure=f"value {value}", dice=scores[number])
                    for name, number in zip(MEASUREMENTS, (0, -1), strict=True)
                ]
        dices = {name: [score.dice for score in found if score.measurement == name] for name in MEASUREMENTS}
        return {name: {"mean": round(float(np.mean(own)), 4) if own else 0.0} for name, own in dices.items()}, found

    def _result(self) -> TrainResult:
        """Write the best weights, and evaluate them and the version in production."""
        assert self._report is not None
        trained = Promptable(**self._network)
        trained.load_state_dict(self._best or self._student.average.state_dict())
        weights = self._request.folder / "model.safetensors"
        save_weights(trained, weights)
        metrics, scores = self._measured(weights) or ({}, [])
        baseline = self._request.baseline
        before = self._measured(baseline.weights) if baseline is not None and is_promptable(baseline) else None
        comparison = compared(scores, before[1]) if before else None
        card = {**self._version_card(), "metrics": metrics, **({"compared": comparison} if comparison else {})}
        stats = self._report.write(self._state, finished=True)
        self._report.scored(scores)
        self._report.finish(card, comparison)
        return TrainResult(
            weights=weights,
            metric=key_metric(metrics) if metrics else None,
            baseline=key_metric(before[0]) if before else None,
            card=card,
            stats=stats,
        )

    def _version_card(self) -> dict[str, Any]:
        state, card = self._state, self._parent.card
        return {
            **{name: card[name] for name in ("labels", "network", "description", "license") if name in card},
            "code": f"rayapp {__version__}, torch {torch.__version__}",
            "data": {
                "hash": digest_of([*self._train, *self._val]),
                "training": len(self._train),
                "validation": len(self._val),
            },
            "config": asdict(self._options),
            "trained": state.trained(self._parent.version),
        }


def clicked(task: PromptableTask, labelled: Labelled, truth: Mask) -> list[float]:
    """Dice after each of `CLICKS` clicks on a structure."""
    prepared = PreparedSource(labelled.source)

    def ask(on: Sequence[Point], off: Sequence[Point]) -> Mask:
        clicks = {name: tuple(points) for name, points in ((FOREGROUND, on), (BACKGROUND, off)) if points}
        return np.asarray(task.predict(prepared, Prompts(clicks=clicks), {}).labels > 0)

    answers = corrected(ask, truth, labelled.source.spacing, CLICKS)
    return [dice(answer, truth, 1)[0] for answer in answers]
