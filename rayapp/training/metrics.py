"""Dice, and its means over cases and workers.

MONAI's `compute_dice` either leaves out a structure that is absent from the truth, though the network found one, or
calls its absence from both a perfect score; here the first is 0 and the second does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

Figures = dict[str, dict[str, float]]
"""Mean Dice by measurement and structure; "mean" among the structures is that of the foreground."""


def dice(found: npt.NDArray[Any], truth: npt.NDArray[Any], labels: int) -> list[float]:
    """Dice of the structures 1 to `labels`; NaN where neither has it."""
    mine, theirs, both = (
        np.bincount(values.ravel(), minlength=labels + 1)[1 : labels + 1].astype(float)
        for values in (found, truth, np.where(found == truth, truth, 0))
    )
    with np.errstate(invalid="ignore"):
        scores: list[float] = (2 * both / (mine + theirs)).tolist()
    return scores


class Tally:
    """Sums of Dice by measurement and structure."""

    def __init__(self, measurements: Sequence[str], structures: Sequence[str]) -> None:
        self._measurements = tuple(measurements)
        self._structures = tuple(structures)
        self._sums = np.zeros((2, len(measurements), len(structures)))

    def add(self, measurement: str, scores: Sequence[float]) -> None:
        """One case's Dice by structure; NaN does not count."""
        row = self._measurements.index(measurement)
        counts = ~np.isnan(scores)
        self._sums[0, row] += np.where(counts, scores, 0)
        self._sums[1, row] += counts

    def merge(self, other: Tally) -> None:
        """Add another's sums."""
        self._sums += other._sums

    def share(self, device: torch.device) -> None:
        """Add up over all workers of the run; all call it."""
        sums = torch.from_numpy(self._sums).to(device)
        distributed.all_reduce(sums)
        self._sums = sums.cpu().numpy()

    def means(self) -> Figures:
        """Mean Dice; structures that no case has are left out."""
        figures: Figures = {}
        for measurement, total, count in zip(self._measurements, *self._sums, strict=True):
            rows = zip(self._structures, total, count, strict=True)
            by_name = {name: round(float(t / c), 4) for name, t, c in rows if c}
            mean = round(sum(by_name.values()) / len(by_name), 4) if by_name else 0.0
            figures[measurement] = {"mean": mean, **by_name}
        return figures


def figure(figures: Mapping[str, Mapping[str, float]]) -> float:
    """The one number that runs are compared by: the mean over measurements of the mean foreground Dice."""
    return round(sum(means["mean"] for means in figures.values()) / len(figures), 4)
