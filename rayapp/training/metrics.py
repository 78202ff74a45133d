"""Dice scores and their means over cases and workers.

MONAI's `compute_dice` either ignores a structure that is absent from the reference although it was predicted, or scores
its absence from both as perfect. Here the first scores 0 and the second does not count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rayapp.imaging.unseen import UNSEEN

if TYPE_CHECKING:
    import torch

Metrics = dict[str, dict[str, float]]
"""Mean Dice score by measurement and structure; the key "mean" is the mean over structures."""


def dice(
    predicted: npt.NDArray[Any], truth: npt.NDArray[Any], labels: int, *, unsought: Collection[int] = ()
) -> list[float]:
    """Dice score of each structure.

    Args:
        predicted: Label map, (…).
        truth: Reference label map of the same shape; voxels of `UNSEEN` do not count.
        labels: The largest label value; structures have the values 1 to `labels`.
        unsought: Values of the structures that were not looked for.

    Returns:
        Scores in the order of values; NaN for a structure that is in neither label map or was not looked for.
    """
    predicted = np.where(truth == UNSEEN, UNSEEN, predicted)
    size_predicted, size_truth, overlap = (
        np.bincount(values.ravel(), minlength=labels + 1)[1 : labels + 1].astype(float)
        for values in (predicted, truth, np.where(predicted == truth, truth, 0))
    )
    with np.errstate(invalid="ignore"):
        scores: list[float] = (2 * overlap / (size_predicted + size_truth)).tolist()
    return [math.nan if value in unsought else score for value, score in enumerate(scores, 1)]


class Tally:
    """Running sums of Dice scores by measurement and structure."""

    def __init__(self, measurements: Sequence[str], structures: Sequence[str]) -> None:
        """Empty sums.

        Args:
            measurements: Names of the measurements.
            structures: Names of the structures, by value from 1.
        """
        self._measurements = tuple(measurements)
        self._structures = tuple(structures)
        self._sums = np.zeros((2, len(measurements), len(structures)))

    def add(self, measurement: str, scores: Sequence[float]) -> None:
        """Add a case's Dice scores, one for each structure; NaN does not count."""
        row = self._measurements.index(measurement)
        counts = ~np.isnan(scores)
        self._sums[0, row] += np.where(counts, scores, 0)
        self._sums[1, row] += counts

    def merge(self, other: Tally) -> None:
        """Add another tally's sums."""
        self._sums += other._sums

    def all_reduce(self, device: torch.device) -> None:
        """Sum over all workers of the run. A collective operation: every worker calls it."""
        import torch  # needed among several workers only, and `rayapp replay` computes its scores without it
        from torch import distributed

        sums = torch.from_numpy(self._sums).to(device)
        distributed.all_reduce(sums)
        self._sums = sums.cpu().numpy()

    def means(self) -> Metrics:
        """Mean Dice scores; structures that no case has are left out."""
        metrics: Metrics = {}
        for measurement, total, count in zip(self._measurements, *self._sums, strict=True):
            rows = zip(self._structures, total, count, strict=True)
            by_name = {name: round(float(t / c), 4) for name, t, c in rows if c}
            mean = round(sum(by_name.values()) / len(by_name), 4) if by_name else 0.0
            metrics[measurement] = {"mean": mean, **by_name}
        return metrics


def key_metric(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """The single number that versions are compared by: the mean foreground Dice, averaged over measurements."""
    return round(sum(means["mean"] for means in metrics.values()) / len(metrics), 4)
