"""Trials: structures of real images for validation, and the quality of first answers on them.

A trial is a file `NAME.npz` with `image` (i, j, k), `mask` (i, j, k) and `spacing` (3, mm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.inference.infer_task import Point
from rayapp.inference.zoom.glance import across
from rayapp.inference.zoom.marks import Box, Marks, channels
from rayapp.inference.zoom.view import Source, View, normalised
from rayapp.models.promptable import Promptable
from rayapp.training.synthetic.prompts import correction, middle

STEPS = 7
"""Number of views of a trial after a click; their sizes form a geometric series up to the image's."""


@dataclass(frozen=True)
class Trial:
    """A structure of a real image.

    Attributes:
        name: names the structure and its image.
        source: the image.
        mask: the structure on the image's voxels.
    """

    name: str
    source: Source
    mask: NDArray[np.bool_]


def corrected(
    ask: Callable[[Sequence[Point], Sequence[Point]], NDArray[np.bool_]],
    truth: NDArray[np.bool_],
    spacing: NDArray[np.float64],
    count: int,
    answer: NDArray[np.bool_] | None = None,
) -> Iterator[NDArray[np.bool_]]:
    """The masks after each of several clicks at the middle of the largest error, the protocol of the CVPR 2025
    challenge on interactive segmentation.

    Args:
        ask: returns the mask for all clicks on the structure and all clicks off it.
        truth: the structure, (i, j, k).
        spacing: voxel spacing, mm.
        count: maximum number of clicks; none follows a perfect mask.
        answer: the mask before the first click; None places the first click at the structure's middle.
    """
    on: list[Point] = []
    off: list[Point] = []
    for _ in range(count):
        if answer is None:
            at, included = middle(truth, spacing), True
        else:
            found = correction(None, truth, answer, spacing)
            if found is None:
                yield answer
                continue
            at, included = found
        (on if included else off).append((int(at[0]), int(at[1]), int(at[2])))
        answer = ask(on, off)
        yield answer


def load_trials(folder: Path) -> list[Trial]:
    """The trials in a folder, by name."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            found.append(Trial(path.stem, Source(stored["image"], stored["spacing"]), stored["mask"] > 0))
    return found


def score(network: Promptable, trials: list[Trial], edge: int = 32) -> dict[str, float]:
    """Mean Dice against the whole structure, in views, after a click in its middle and after a tight box.

    Returns:
        `click`: in the view that the quality head prefers; `best`: in the best view; `box`: in a view around the box;
        `judge`: mean error of the quality head.
    """
    clicks, bests, boxes, errors = [], [], [], []
    network.eval()
    for trial in trials:
        spacing = trial.source.spacing
        voxels = np.argwhere(trial.mask)
        low, high = (voxels.min(0) - 0.5) * spacing, (voxels.max(0) + 0.5) * spacing
        at = middle(trial.mask, spacing) * spacing
        sizes = np.geomspace(12 * spacing.min(), trial.source.extent.max(), STEPS)
        dices, judged = _answers(network, trial, Marks(include=[at]), at, sizes, edge)
        clicks.append(dices[judged.argmax()])
        bests.append(dices.max())
        errors.append(np.abs(judged - dices).mean())
        marks = Marks(boxes=[Box.of(low, high)])
        longest = (high - low)[across(trial.source.column)].max()
        dices, _ = _answers(network, trial, marks, (low + high) / 2, np.array([longest * 1.35]), edge)
        boxes.append(dices[0])
    network.train()
    return {
        "click": round(float(np.mean(clicks)), 4),
        "best": round(float(np.mean(bests)), 4),
        "box": round(float(np.mean(boxes)), 4),
        "judge_error": round(float(np.mean(errors)), 4),
    }


def _answers(
    network: Promptable,
    trial: Trial,
    marks: Marks,
    centre: NDArray[np.float64],
    sizes: NDArray[np.float64],
    edge: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each view, the Dice against the whole structure and the expected one."""
    truth = Source(trial.mask.astype(np.float32), trial.source.spacing)
    volume = float(trial.mask.sum() * trial.source.spacing.prod())
    inputs, masks, wholes = [], [], []
    for size in sizes:
        view = View.around(centre, float(size), edge, trial.source.column)
        inside = trial.source.inside(view)
        inputs.append(channels(view, normalised(trial.source.sample(view), inside), marks))
        masks.append((truth.sample(view) > 0.5) & inside)
        wholes.append(volume / view.cell)
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(inputs)).contiguous(memory_format=torch.channels_last_3d)
        logits, quality, _ = network(batch)
    answers = logits.numpy() > 0
    dices = [
        2 * (answer & mask).sum() / max(1.0, answer.sum() + max(whole, mask.sum()))
        for answer, mask, whole in zip(answers, masks, wholes, strict=True)
    ]
    return np.array(dices, float), torch.sigmoid(quality).numpy().astype(float)
