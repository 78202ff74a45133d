"""Record: what a run leaves in its folder for people to look at. Rank 0 only, one thread.

design.json      what was chosen before the first step, and why, as the model's card has it
stats.json       the figures `/info/` shows as `train_stats`, rewritten after each validation
curves.png       loss, Dice and learning rate by epoch
events/          the same for TensorBoard
validation.png   a validation image: the reference above, what the model finds below
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayapp.imaging.overlay import mask_overlay
from rayapp.imaging.volume import Volume
from rayapp.training.checkpoint import State

Labels = npt.NDArray[np.uint8]

DESIGN, STATS, CURVES, EVENTS, OVERLAY = "design.json", "stats.json", "curves.png", "events", "validation.png"


class Record:
    """The record of one run."""

    def __init__(self, folder: Path, *, epochs: int) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._epochs = epochs
        self._events = SummaryWriter(str(folder / EVENTS))

    def validated(self, state: State) -> None:
        """Show the row that was just added to the state's."""
        row = state.rows[-1]
        scalars = {"train/loss": row["loss"], "train/learning_rate": row["rate"]}
        scalars |= {f"train/{key}": value for key, value in _named("dice", row["train"]).items()}
        for measurement, means in row["val"].items():
            scalars |= {f"val/{key}": value for key, value in _named(measurement, means).items()}
        for name, value in scalars.items():
            self._events.add_scalar(name, value, row["iteration"])
        self._events.flush()
        curves(state.rows, self._folder / CURVES)
        self.write(state)

    def design(self, chosen: Mapping[str, Any]) -> None:
        """Keep what the run starts from."""
        (self._folder / DESIGN).write_text(json.dumps(chosen, indent=1))

    def write(self, state: State, *, over: bool = False) -> dict[str, Any]:
        """Rewrite `stats.json`; the same as a dict."""
        stats = self._stats(state, over=over)
        staged = self._folder / f".{STATS}"
        staged.write_text(json.dumps(stats))
        staged.rename(self._folder / STATS)
        return stats

    def close(self) -> None:
        """No more events."""
        self._events.close()

    def overlay(self, volume: Volume, truth: Labels, found: Labels, names: Mapping[str, int]) -> None:
        """Draw the reference and, below it, what a model finds."""
        above, below = mask_overlay(volume, truth, names), mask_overlay(volume, found, names)
        sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height))
        sheet.paste(above, (0, 0))
        sheet.paste(below, (0, above.height))
        sheet.save(self._folder / OVERLAY)

    def _stats(self, state: State, *, over: bool) -> dict[str, Any]:
        rows = state.rows
        train: dict[str, float] = {}
        val: dict[str, float] = {}
        if rows:
            train = {"train_loss": rows[-1]["loss"], **_named("train", rows[-1]["train"], "_dice")}
            for measurement, means in rows[-1]["val"].items():
                val |= _named("val", means, f"_{measurement}")
        return {
            "total_epochs": self._epochs,
            "total_iterations": state.iterations,
            "epoch": state.epoch,
            "start_ts": int(state.started),
            "total_time" if over else "current_time": str(timedelta(seconds=round(state.seconds))),
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


def _named(before: str, means: Mapping[str, float], after: str = "") -> dict[str, float]:
    return {f"{before}_{name}{after}": value for name, value in means.items()}


def _best(values: list[tuple[float, int]]) -> dict[str, float | int]:
    best, epoch = max(values, key=lambda item: (item[0], -item[1]), default=(0.0, 0))
    return {"best_metric": best, "best_metric_epoch": epoch}


def curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, Dice and learning rate by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    sheet = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(sheet)
    loss, score, rate = sheet.subplots(1, 3)
    loss.plot(epochs, [row["loss"] for row in rows], marker=".")
    loss.set(title="training loss", xlabel="epoch")
    score.plot(epochs, [row["train"]["mean"] for row in rows], marker=".", linestyle=":", label="train dice")
    for measurement in rows[-1]["val"]:
        score.plot(epochs, [row["val"][measurement]["mean"] for row in rows], marker=".", label=f"val {measurement}")
    score.set(title="mean foreground Dice", xlabel="epoch", ylim=(0, 1))
    score.legend()
    rate.plot(epochs, [row["rate"] for row in rows], marker=".")
    rate.set(title="learning rate", xlabel="epoch")
    staged = path.with_name(f".{path.name}")
    sheet.savefig(staged, format="png", dpi=100)
    staged.rename(path)
