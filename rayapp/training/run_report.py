"""RunReport: the files that a run writes to its folder for people. Each is complete or absent; rank 0 only.

design.json      the design and its reasons, as in the model's card; written before the first step
stats.json       the statistics that `/info/` shows as `train_stats`, rewritten after each validation
curves.png       loss, Dice score and learning rate by epoch, drawn at most every 20 s and at the end
events/          the same for TensorBoard
cases.csv        the scores of each validation case, see `rayapp.training.case_scores`; written at the end
worst-N.png      the validation images with the lowest scores: the reference (top) and the prediction (bottom)
report.html      a page with all of this
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from rayapp.files.durable import replacing
from rayapp.imaging.overlay import mask_overlay
from rayapp.training.case_scores import CaseScore, write_scores
from rayapp.training.checkpoint import State
from rayapp.training.recipe import Evaluation
from rayapp.training.report_page import write_page

DESIGN, STATS, CURVES, EVENTS = "design.json", "stats.json", "curves.png", "events"
CASES, PAGE = "cases.csv", "report.html"
WORST = 3
"""Number of validation images that are drawn, the worst first."""
CURVES_S = 20.0
"""Least time in seconds between two drawings of the curves; each takes most of a second of one core."""


class RunReport:
    """The report of one run."""

    def __init__(self, folder: Path, *, model: str, epochs: int) -> None:
        """Open the report.

        Args:
            folder: The run's folder.
            model: Name of the model.
            epochs: Number of epochs of the whole run, as far as it is known; may be set later.
        """
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._model = model
        self.epochs = epochs
        self._events = SummaryWriter(str(folder / EVENTS))
        self._drawn, self._drawn_rows = -math.inf, 0
        self._scores: list[CaseScore] = []
        self._worst: list[tuple[float, str, Image.Image]] = []

    def validated(self, state: State) -> None:
        """Add the newest row of the state to all files."""
        row = state.rows[-1]
        scalars = {"train/loss": row["loss"], "train/learning_rate": row["rate"]}
        scalars |= {f"train/{key}": value for key, value in _renamed("dice", row["train"]).items()}
        for measurement, means in row["val"].items():
            scalars |= {f"val/{key}": value for key, value in _renamed(measurement, means).items()}
        for name, value in scalars.items():
            self._events.add_scalar(name, value, row["iteration"])
        self._events.flush()
        if time.monotonic() - self._drawn > CURVES_S:
            self._draw_curves(state)
        self.write(state)

    def _draw_curves(self, state: State) -> None:
        curves(state.rows, self._folder / CURVES)
        self._drawn, self._drawn_rows = time.monotonic(), len(state.rows)

    def design(self, card: Mapping[str, Any]) -> None:
        """Write `design.json`: the design as part of a card."""
        with replacing(self._folder / DESIGN) as staged:
            staged.write_text(json.dumps(card, indent=1))

    def write(self, state: State, *, finished: bool = False) -> dict[str, Any]:
        """Rewrite `stats.json`.

        Args:
            state: The progress of the run.
            finished: The run is over, so its time is the total time; `curves.png` is drawn a last time.

        Returns:
            The statistics.
        """
        stats = self._stats(state, finished=finished)
        with replacing(self._folder / STATS) as staged:
            staged.write_text(json.dumps(stats))
        if finished and len(state.rows) != self._drawn_rows:
            self._draw_curves(state)
        return stats

    def close(self) -> None:
        """Close the TensorBoard events."""
        self._events.close()

    def scored(self, scores: Sequence[CaseScore]) -> None:
        """Add scores of the finished model."""
        self._scores += scores

    def evaluated(self, scores: Sequence[CaseScore], evaluation: Evaluation, names: Mapping[str, int]) -> None:
        """Add a validation case of the finished model; it is drawn if it is among the `WORST`.

        Args:
            scores: Its scores.
            evaluation: The predictions and the reference.
            names: Value by structure name.
        """
        self.scored(scores)
        mean = sum(score.dice for score in scores) / len(scores) if scores else math.inf
        if len(self._worst) < WORST or mean < self._worst[-1][0]:
            predicted = list(evaluation.predictions.values())[-1]
            above, below = (mask_overlay(evaluation.volume, map_, names) for map_ in (evaluation.truth, predicted))
            sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height))
            sheet.paste(above, (0, 0))
            sheet.paste(below, (0, above.height))
            self._worst = sorted([*self._worst, (mean, evaluation.name, sheet)], key=lambda one: one[0])[:WORST]

    def finish(self, card: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> None:
        """Write the scores, the pictures and the page of the finished model.

        Args:
            card: The model's card.
            baseline: Comparison with the version in production, see `compared`; None without one.
        """
        write_scores(self._scores, self._folder / CASES)
        pictures = {"Loss, Dice and learning rate": self._folder / CURVES}
        for number, (mean, name, sheet) in enumerate(self._worst, 1):
            path = self._folder / f"worst-{number}.png"
            with replacing(path) as staged:
                sheet.save(staged, format="png")
            pictures[f"{name}: the reference (top) and the prediction (bottom), Dice {mean:.3f}"] = path
        facts = {key: card[key] for key in ("description", "data", "trained", "config", "seed", "code") if key in card}
        if baseline is not None:
            facts["against the version in production"] = baseline
        write_page(
            self._folder / PAGE,
            title=f"Training of {self._model}",
            facts=facts,
            scores=self._scores,
            reasons=card.get("plan", {}),
            pictures=pictures,
        )

    def _stats(self, state: State, *, finished: bool) -> dict[str, Any]:
        rows = state.rows
        train: dict[str, float] = {}
        val: dict[str, float] = {}
        if rows:
            train = {"train_loss": rows[-1]["loss"], **_renamed("train", rows[-1]["train"], "_dice")}
            for measurement, means in rows[-1]["val"].items():
                val |= _renamed("val", means, f"_{measurement}")
        return {
            "total_epochs": self.epochs,
            "total_iterations": state.iterations,
            "epoch": state.epoch,
            "start_ts": int(state.started),
            "total_time" if finished else "current_time": str(timedelta(seconds=round(state.seconds))),
            "best_metric": state.best or 0.0,
            "train": {
                "metrics": train,
                "key_metric_name": "train_mean_dice",
                **_best([(row["train"]["mean"], row["epoch"]) for row in rows]),
            },
            "eval": {
                "metrics": val,
                "key_metric_name": "val_mean_dice",
                **_best([(row["metric"], row["epoch"]) for row in rows]),
            },
        }


def _renamed(prefix: str, means: Mapping[str, float], suffix: str = "") -> dict[str, float]:
    return {f"{prefix}_{name}{suffix}": value for name, value in means.items()}


def _best(values: list[tuple[float, int]]) -> dict[str, float | int]:
    best, epoch = max(values, key=lambda item: (item[0], -item[1]), default=(0.0, 0))
    return {"best_metric": best, "best_metric_epoch": epoch}


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, Dice score and learning rate by epoch to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    sheet = Figure(figsize=(12, 3.4))
    FigureCanvasAgg(sheet)
    loss, score, rate = sheet.subplots(1, 3)
    sheet.subplots_adjust(left=0.05, right=0.985, bottom=0.14, top=0.91, wspace=0.22)
    loss.plot(epochs, [row["loss"] for row in rows], marker=".")
    loss.set(title="training loss", xlabel="epoch")
    score.plot(epochs, [row["train"]["mean"] for row in rows], marker=".", linestyle=":", label="train dice")
    for measurement in rows[-1]["val"]:
        score.plot(epochs, [row["val"][measurement]["mean"] for row in rows], marker=".", label=f"val {measurement}")
    score.set(title="mean foreground Dice", xlabel="epoch", ylim=(0, 1))
    score.legend()
    rate.plot(epochs, [row["rate"] for row in rows], marker=".")
    rate.set(title="learning rate", xlabel="epoch")
    with replacing(path) as staged:
        sheet.savefig(staged, format="png", dpi=100)
