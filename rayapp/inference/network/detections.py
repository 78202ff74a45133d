"""Boxes that a detector found: from the network's grid to LPS millimetres and to a file that 3D Slicer reads.

A box's corners are in the index space of the image that the detector saw, as MONAI's detectors put them out; turned
with an oblique grid they become the upright box around them. Slicer's file is its markups schema 1.0.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.geometry import Affine, index_to_mm
from rayapp.inference.infer_task import Prediction

SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
UPRIGHT = [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Centre and size in LPS mm; what is in it, and how sure the detector is."""

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    label: str
    score: float


def found(
    corners: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    *,
    affine: Affine,
    shape: tuple[int, ...],
    names: Mapping[int, str],
) -> list[Box]:
    """Boxes of (N, 6) lower and upper corners in index space, the surest first; what lies outside `shape` is cut off.

    `affine` maps the indices to RAS mm.
    """
    result = []
    for at in np.argsort(-scores, kind="stable"):
        low, high = np.clip(corners[at, :3], 0, shape), np.clip(corners[at, 3:], 0, shape)
        if not (high > low).all():
            continue
        ends = np.array(list(product(*zip(low, high, strict=True))))
        lps = index_to_mm(affine, ends) * (-1.0, -1.0, 1.0)
        least, most = lps.min(axis=0), lps.max(axis=0)
        value = int(labels[at])
        result.append(
            Box(
                center=_three((least + most) / 2),
                size=_three(most - least),
                label=names.get(value, str(value)),
                score=float(scores[at]),
            )
        )
    return result


def prediction(boxes: list[Box], shape: tuple[int, int, int], seconds: Mapping[str, float]) -> Prediction:
    """A reply with boxes, an empty mask, and a file of markups."""
    params = {
        "box": [[*box.center, *box.size] for box in boxes],
        "label": [box.label for box in boxes],
        "label_scores": [box.score for box in boxes],
    }
    document = json.dumps({"@schema": SCHEMA, "markups": [_markup(box) for box in boxes]}).encode()
    return Prediction(
        labels=np.zeros(shape, dtype=np.uint8, order="F"), params=params, seconds=seconds, document=document
    )


def _markup(box: Box) -> dict[str, Any]:
    return {
        "type": "ROI",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "roiType": "Box",
        "center": box.center,
        "size": box.size,
        "orientation": UPRIGHT,
        "insideOut": False,
        "label": {"value": box.label},
        "controlPoints": [{"id": "1", "label": f"{box.label} {box.score:.2f}", "position": box.center}],
        "measurements": [],
    }


def _three(values: npt.NDArray[Any]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
