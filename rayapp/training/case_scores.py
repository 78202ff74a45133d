"""Scores of each validation case: overlap, surface distances and volumes, by structure.

Dice and surface Dice (the share of both surfaces that lies within `TOLERANCE` of the other) are better the greater they
are; the 95th percentile of the surface distances (HD95) is better the smaller it is. The definitions are those of
Metrics Reloaded (Maier-Hein et al. 2024); MONAI computes the distances.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rayapp.files.durable import replacing
from rayapp.geometry import spacing
from rayapp.training.metrics import dice
from rayapp.training.recipe import Evaluation

TOLERANCE = 2.0
"""Distance in mm up to which two surfaces count as coincident in the surface Dice."""
DRAWS = 2000
"""Number of bootstrap samples for a confidence interval."""


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """Scores of one structure in one image.

    Attributes:
        image: The image's name.
        measurement: The kind of prediction, such as `dice_after_clicks`.
        structure: The structure's name.
        dice: Dice score.
        surface_dice: Surface Dice at `TOLERANCE`.
        hd95: 95th percentile of the surface distances, mm; NaN if only one of the label maps has the structure.
        volume: Volume of the prediction, ml.
        reference: Volume of the reference, ml.

    All but Dice are NaN if they were not measured, for example because the voxel size is unknown.
    """

    image: str
    measurement: str
    structure: str
    dice: float
    surface_dice: float = math.nan
    hd95: float = math.nan
    volume: float = math.nan
    reference: float = math.nan


def scores_of(evaluation: Evaluation, labels: Mapping[str, int], *, distances: bool = True) -> list[CaseScore]:
    """The scores of a validation case, without structures that are in neither label map or were not looked for.

    Args:
        evaluation: The predictions and the reference.
        labels: Value by structure name.
        distances: False omits the surface distances, which take longest.
    """
    edges = spacing(evaluation.volume.affine) if evaluation.placed else np.full(3, np.nan)
    voxel = float(edges.prod()) / 1000
    found = []
    for measurement, predicted in evaluation.predictions.items():
        overlap = dice(predicted, evaluation.truth, max(labels.values()), unsought=evaluation.unsought)
        for name, value in labels.items():
            score = overlap[value - 1]
            if math.isnan(score):
                continue
            one, other = predicted == value, evaluation.truth == value
            surface, distance = _distances(one, other, edges) if distances else (math.nan, math.nan)
            found.append(
                CaseScore(
                    image=evaluation.name,
                    measurement=measurement,
                    structure=name,
                    dice=round(score, 4),
                    surface_dice=round(surface, 4),
                    hd95=round(distance, 2),
                    volume=round(float(one.sum()) * voxel, 3),
                    reference=round(float(other.sum()) * voxel, 3),
                )
            )
    return found


def _distances(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], edges: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Surface Dice and HD95 in mm of two masks, of which at least one is not empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if np.isnan(edges).any():
        return math.nan, math.nan
    if not one.any() or not other.any():
        return 0.0, math.nan
    low, high = (np.argwhere(one | other).min(0), np.argwhere(one | other).max(0) + 1)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    # A layer of background, as the mask's own outermost voxels are its surface.
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (one, other)]
    size = tuple(float(edge) for edge in edges)
    surface = compute_surface_dice(*pair, class_thresholds=[TOLERANCE], include_background=True, spacing=size)
    distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=size)
    return float(surface), float(distance)


def write_scores(scores: Iterable[CaseScore], path: Path) -> None:
    """Write scores as CSV with a header line; NaN becomes empty."""
    with replacing(path) as staged, staged.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(CaseScore)])
        table.writeheader()
        for score in scores:
            row = asdict(score)
            table.writerow({key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()})


def compared(scores: Sequence[CaseScore], baseline: Sequence[CaseScore]) -> dict[str, float] | None:
    """Mean difference in Dice from another version, on the structures and images that both were scored on.

    Args:
        scores: Scores of the new version.
        baseline: Scores of the other version.

    Returns:
        `difference`; `low` and `high`, its 95 % confidence interval by a bootstrap over images; `better`, the share of
        bootstrap samples in which the new version is better; and `images`, their number. None without a common image.
    """
    before = {(one.image, one.measurement, one.structure): one.dice for one in baseline}
    by_image: dict[str, list[float]] = {}
    for one in scores:
        key = (one.image, one.measurement, one.structure)
        if key in before:
            by_image.setdefault(one.image, []).append(one.dice - before[key])
    if not by_image:
        return None
    means = np.array([np.mean(differences) for differences in by_image.values()])
    drawn = np.random.default_rng(0).choice(means, (DRAWS, len(means))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "difference": round(float(means.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "better": round(float((drawn > 0).mean()), 4),
        "images": len(means),
    }
