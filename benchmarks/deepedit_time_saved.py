"""Annotation time saved by DeepEdit: python -m benchmarks.deepedit_time_saved [--quick] [--json]

The protocol of Figure 7 of the MONAI Label paper (Diaz-Pinto et al., 2024) with simulated annotators, on the hippocampi
of the Medical Segmentation Decathlon in `../shared/data/hippocampus`. Three annotators label the same volumes in the
same order, and train DeepEdit equally often and long; it is validated on volumes that none of them labels.

    manual      segments every volume by hand and trains when all are done
    early       segments every volume by hand and trains after every `--every` volumes
    assisted    segments the first `--every` volumes by hand and trains as often; once there is a model, reviews the
                newest one's segmentation and clicks into the largest error until Dice reaches `--accept`; a volume that
                `--clicks` clicks do not bring there is segmented by hand, at the full cost

Time is simulated: `--manual-min` per volume segmented by hand, `--review-s` per review, `--click-s` per click and its
answer. Training runs concurrently and takes the processor time that it took here. Models learn from the labels that the
annotators save, so the assisted annotator's accepted errors remain in them. Prints the minutes until a model reaches
validation Dice 0.60 and 0.80 without clicks, and until all volumes are labelled.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.train_hippocampus import LABELS, halves, hippocampi
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.store import ModelVersion
from rayapp.training.cases import read_pair
from rayapp.training.deepedit_train import DeepEditTrainTask, annotate
from rayapp.training.local_host import LocalHost
from rayapp.training.metrics import dice
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Labels
from rayapp.training.train_task import Pair, TrainRequest

ARMS = ("manual", "early", "assisted")
TARGETS = (0.6, 0.8)
QUICK = {"volumes": 16, "validation": 10, "iterations": 200}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Costs of annotation.

    Attributes:
        manual_s: Seconds to segment a volume by hand.
        review_s: Seconds to review a segmentation.
        click_s: Seconds per click.
        clicks: Largest number of clicks in a volume.
        accept: Dice at which a mask is accepted.
    """

    manual_s: float
    review_s: float
    click_s: float
    clicks: int
    accept: float


@dataclass(kw_only=True)
class Outcome:
    """Results of one annotator.

    Attributes:
        arm: The annotator.
        models: For each model, minute of publication, number of training volumes and validation Dice.
        clicks: Number of clicks in each reviewed volume.
        by_hand: Number of volumes segmented by hand.
        labelled_min: Minutes until all volumes were labelled.
    """

    arm: str
    models: list[tuple[float, int, float]] = field(default_factory=list)
    clicks: list[int] = field(default_factory=list)
    by_hand: int = 0
    labelled_min: float = 0.0

    def reached(self, target: float) -> float | None:
        """Minutes until a model reached a Dice; None if none did."""
        return next((minute for minute, _, score in self.models if score >= target), None)


class Held(DeepEditTrainTask):
    """The app's train task with given validation volumes."""

    def __init__(self, validation: Sequence[Pair]) -> None:
        super().__init__(labels=LABELS, description="hippocampus", options=ClickOptions())
        self.validation = list(validation)

    def partition(self, pairs: Sequence[Pair], options: ClickOptions) -> tuple[list[Pair], list[Pair]]:  # noqa: ARG002
        """The other pairs for training, and the given ones for validation."""
        return [pair for pair in pairs if pair not in self.validation], self.validation


class Trainer:
    """Trains a sequence of models, each from the previous one, on the simulated clock."""

    def __init__(self, task: Held, folder: Path, iterations: int) -> None:
        self._task, self._folder, self._iterations = task, folder, iterations
        self._made: list[tuple[float, ModelVersion]] = []

    def learn(self, labelled: Sequence[Pair], clock: float) -> tuple[float, float]:
        """Train on pairs, starting at `clock` or when the previous training ends; returns its end (s) and Dice."""
        folder = self._folder / str(len(self._made))
        epochs = math.ceil(self._iterations / len(labelled))
        request = TrainRequest(
            model="deepedit",
            pairs=[*labelled, *self._task.validation],
            folder=folder,
            params={"max_epochs": epochs, "val_interval": epochs, "val_clicks": 1},
            parent=self._made[-1][1] if self._made else None,
        )
        began = time.process_time()
        result = self._task.train(request, LocalHost(folder / "host"))
        assert result is not None
        ready = max(clock, self._made[-1][0] if self._made else 0.0) + time.process_time() - began
        version = f"v{len(self._made) + 1}"
        self._made.append(
            (ready, ModelVersion(name="deepedit", version=version, weights=result.weights, card=dict(result.card)))
        )
        return ready, float(result.card["metrics"]["dice"]["mean"])

    def serving(self, clock: float) -> SegmentationTask | None:
        """The newest model at a time, or None."""
        found = [version for ready, version in self._made if ready <= clock]
        return self._task.serve(found[-1]) if found else None


def corrected(task: SegmentationTask, pair: Pair, effort: Effort) -> tuple[Labels, int, bool]:
    """Correct a model's segmentation by clicks; returns labels, number of clicks, and whether to accept."""
    volume, truth, _ = read_pair(pair, LABELS)
    for clicks, found in enumerate(annotate(task, task.prepare(volume), truth, clicks=effort.clicks)):
        if float(np.nanmean(dice(found, truth, len(LABELS)))) >= effort.accept:
            return found, clicks, True
    return found, effort.clicks, False


def work(arm: str, pool: Sequence[Pair], trainer: Trainer, effort: Effort, folder: Path, *, every: int) -> Outcome:
    """Simulate one annotator, who labels all volumes and trains after every `every` volumes."""
    outcome, clock, labelled = Outcome(arm=arm), 0.0, []
    for pair in pool:
        model = trainer.serving(clock) if arm == "assisted" else None
        mine, good = pair, False
        if model is not None:
            found, clicks, good = corrected(model, pair, effort)
            outcome.clicks.append(clicks)
            clock += effort.review_s + clicks * effort.click_s
            if good:
                mine = Pair(image=pair.image, label=folder / pair.label.name)
                mask = Segmentation(array=found, affine=read_pair(pair, LABELS).volume.affine)
                mine.label.write_bytes(encode_segmentation(mask, ".nii.gz"))
        if not good:
            outcome.by_hand += 1
            clock += effort.manual_s
        labelled.append(mine)
        if arm != "manual" and len(labelled) % every == 0:
            note(outcome, trainer, labelled, clock)
    outcome.labelled_min = clock / 60
    while len(outcome.models) < len(pool) // every:
        note(outcome, trainer, labelled, clock)
    return outcome


def note(outcome: Outcome, trainer: Trainer, labelled: Sequence[Pair], clock: float) -> None:
    """Train a model and record it in the outcome."""
    ready, score = trainer.learn(labelled, clock)
    outcome.models.append((round(ready / 60, 2), len(labelled), score))
    print(outcome.arm, *outcome.models[-1], file=sys.stderr, flush=True)


def main() -> None:
    """Run the simulation and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="short for " + ", ".join(f"--{k} {QUICK[k]}" for k in QUICK)
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot")
    parser.add_argument("--volumes", type=int, default=40)
    parser.add_argument("--validation", type=int, default=40)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=400, help="iterations of each training")
    parser.add_argument("--manual-min", type=float, default=10.0)
    parser.add_argument("--review-s", type=float, default=60.0)
    parser.add_argument("--click-s", type=float, default=10.0)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--accept", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    torch.set_num_threads(options.threads)
    effort = Effort(
        manual_s=options.manual_min * 60,
        review_s=options.review_s,
        click_s=options.click_s,
        clicks=options.clicks,
        accept=options.accept,
    )
    training, held = halves(hippocampi())
    order = np.random.default_rng(0).permutation(len(training))[: options.volumes]
    pool, task = [training[n] for n in order], Held(held[: options.validation])
    outcomes = []
    for arm in ARMS:
        with tempfile.TemporaryDirectory(prefix="saved") as place:
            trainer = Trainer(task, Path(place) / "runs", options.iterations)
            outcomes.append(work(arm, pool, trainer, effort, Path(place), every=options.every))
    if options.plot:
        draw(outcomes, options.plot)
    results = [asdict(outcome) | {f"to_{t}": outcome.reached(t) for t in TARGETS} for outcome in outcomes]
    print(json.dumps({"effort": asdict(effort), "arms": results})) if options.json else show(outcomes, effort)


def show(outcomes: Sequence[Outcome], effort: Effort) -> None:
    """Print a table; percentages are relative to the manual annotator's minutes."""
    columns = [*(f"Dice {target:.2f}" for target in TARGETS), "all labelled"]
    title = f"minutes until … ({effort})"
    table = Table("annotator", *columns, "last Dice", "by hand", "clicks a volume", title=title)
    base = minutes(outcomes[0])
    for outcome in outcomes:
        spent = [saved(mine, manual) for mine, manual in zip(minutes(outcome), base, strict=True)]
        clicks = f"{np.mean(outcome.clicks):.1f}" if outcome.clicks else ""
        table.add_row(outcome.arm, *spent, f"{outcome.models[-1][2]:.3f}", str(outcome.by_hand), clicks)
    Console().print(table)


def minutes(outcome: Outcome) -> list[float | None]:
    """Minutes until each target Dice and until all volumes are labelled."""
    return [*(outcome.reached(target) for target in TARGETS), outcome.labelled_min]


def saved(mine: float | None, manual: float | None) -> str:
    """Minutes as text, with the relative difference to the manual annotator's."""
    if mine is None:
        return "not reached"
    return f"{mine:.0f}" + ("" if manual is None or mine == manual else f" ({mine / manual - 1:+.0%})")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Plot validation Dice of the newest model over minutes of work."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(sheet)
    axes: Any = sheet.subplots()
    for outcome in outcomes:
        at, _, scores = zip((0.0, 0, 0.0), *outcome.models, strict=True)
        axes.step(at, scores, where="post", marker=".", label=outcome.arm)
    for target in TARGETS:
        axes.axhline(target, color="grey", linewidth=0.5)
    axes.set(xlabel="minutes", ylabel="validation Dice without clicks", ylim=(0, 1))
    axes.legend(loc="lower right")
    sheet.savefig(path, format="png", dpi=120)


if __name__ == "__main__":
    main()
