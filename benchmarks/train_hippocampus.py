"""Quality and speed of training: python -m benchmarks.train_hippocampus [--json] [--model NAME] [--epochs N]

Trains `segmentation` and `deepedit` as the app does, on the 200 hippocampi of the Medical Segmentation Decathlon in
`../shared/data/hippocampus`, with a fixed split of 160 for training and 40 for validation. Apart from the number of
epochs and the validation interval, all options are the app's defaults. Prints mean foreground Dice on the network grid
over wall time, and over processor time since the machine may be shared; then that of the final model as it is served,
on the source grids: without clicks and, for DeepEdit, after 1, 3, 5 and 10 clicks of a simulated annotator who clicks
into the largest error. Note that the best epoch was selected on the same validation images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.real_data import DATA
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.models.store import ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import read_pair
from rayapp.training.deepedit_train import DeepEditTrainTask, annotate
from rayapp.training.local_host import LocalHost
from rayapp.training.metrics import dice
from rayapp.training.options import ClickOptions, Options
from rayapp.training.run_report import STATS
from rayapp.training.train_task import Pair, Progress, TrainRequest

HIPPOCAMPUS = DATA / "hippocampus"
LABELS = {"anterior": 1, "posterior": 2}
HELD = 40
CLICKS = (0, 1, 3, 5, 10)
EPOCHS = {"segmentation": 40, "deepedit": 40}
VAL_INTERVAL = 4


def hippocampi() -> list[Pair]:
    """All hippocampi, ordered by name."""
    images = sorted((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))
    return [Pair(image=image, label=HIPPOCAMPUS / "labelsTr" / image.name) for image in images]


def halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The fixed split into training and validation, of pairs ordered by name."""
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[n] for n in sorted(order[HELD:])], [pairs[n] for n in sorted(order[:HELD])]


class FixedSplit(BasicTrainTask[Any]):
    """A train task on the fixed split."""

    def partition(self, pairs: Sequence[Pair], options: Options) -> tuple[list[Pair], list[Pair]]:  # noqa: ARG002
        """The fixed split."""
        return halves(pairs)


class Segmentation(FixedSplit):
    """The app's `segmentation` on the fixed split."""


class DeepEdit(FixedSplit, DeepEditTrainTask):
    """The app's `deepedit` on the fixed split."""


TASKS: dict[str, BasicTrainTask[Any]] = {
    "segmentation": Segmentation(labels=LABELS, description="hippocampus", options=Options()),
    "deepedit": DeepEdit(labels=LABELS, description="hippocampus", options=ClickOptions()),
}


def train(name: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Train one model and measure it as it is served."""
    pairs = hippocampi()
    task = TASKS[name]
    began, busy = time.monotonic(), time.process_time()
    curve: list[dict[str, float]] = []

    told_at = -1

    def told(progress: Progress) -> None:
        """Record each validation, which is reported at the same iteration as the training step before it."""
        nonlocal told_at
        validated = progress.epoch % VAL_INTERVAL == 0 or progress.epoch == epochs
        if progress.iteration == told_at and validated:
            spent = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - busy}
            figures = json.loads((folder / "run" / STATS).read_text())["eval"]["metrics"]
            scores = {measurement: figures[f"val_mean_{measurement}"] for measurement in task.measurements}
            curve.append({"epoch": progress.epoch, **spent, **scores})
            print(name, {key: round(value, 4) for key, value in curve[-1].items()}, file=sys.stderr, flush=True)
        told_at = progress.iteration

    params = {"val_interval": VAL_INTERVAL, "max_epochs": epochs}
    request = TrainRequest(model=name, pairs=pairs, folder=folder / "run", params=params)
    result = task.train(request, LocalHost(folder / "host", on_progress=told))
    assert result is not None
    spent = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - busy}
    version = ModelVersion(name=name, version="v1", weights=result.weights, card=result.card)
    return {"model": name, **spent, "curve": curve, "dice": served(task, version, halves(pairs)[1])}


def served(task: BasicTrainTask[Any], version: ModelVersion, pairs: Sequence[Pair]) -> dict[int, float]:
    """Mean foreground Dice of the served model by number of clicks, on the source grids."""
    serving = task.serve(version)
    wanted = CLICKS if isinstance(serving, DeepEditTask) else CLICKS[:1]
    scores: dict[int, list[float]] = {clicks: [] for clicks in wanted}
    for pair in pairs:
        volume, truth, _ = read_pair(pair, LABELS)
        answers = annotate(serving, serving.prepare(volume), truth, clicks=wanted[-1])
        for clicks, found in enumerate(answers):
            if clicks in scores:
                scores[clicks].append(float(np.nanmean(dice(found, truth, len(LABELS)))))
    return {clicks: float(np.mean(values)) for clicks, values in scores.items()}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=list(EPOCHS), help="train only this model")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which the runs' files are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for name in [options.model] if options.model else EPOCHS:
        with tempfile.TemporaryDirectory(prefix="train") as folder:
            results.append(train(name, options.epochs or EPOCHS[name], (options.keep or Path(folder)) / name))
    print(json.dumps(results)) if options.json else show(results)


def show(results: list[dict[str, Any]]) -> None:
    """Print tables."""
    for row in results:
        learning = Table(*row["curve"][0], title=f"{row['model']}: Dice on the network's grid by seconds")
        for point in row["curve"]:
            learning.add_row(*(f"{value:.0f}" if value > 1 else f"{value:.3f}" for value in point.values()))
        Console().print(learning)
    table = Table("model", "wall min", "CPU min", *(f"{clicks} clicks" for clicks in CLICKS), title="Dice as served")
    for row in results:
        scores = [f"{row['dice'][clicks]:.3f}" if clicks in row["dice"] else "" for clicks in CLICKS]
        table.add_row(row["model"], f"{row['wall_s'] / 60:.1f}", f"{row['cpu_s'] / 60:.1f}", *scores)
    Console().print(table)


if __name__ == "__main__":
    main()
