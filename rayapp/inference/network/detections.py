"""Detected boxes: from a detector's voxel coordinates to LPS millimetres and to 3D Slicer's markups file.

MONAI's detectors return box corners in the index space of the image they saw. On an oblique grid a box becomes the
axis-aligned box around it. The file follows Slicer's markups schema 1.0.3.
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
from rayapp.inference.arrays import Shape
from rayapp.inference.infer_task import Prediction

SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
AXIS_ALIGNED = [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]
"""Slicer's `orientation` of a box along the patient axes, row by row."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A detected box.

    Attributes:
        center: Centre in LPS mm.
        size: Edge lengths in mm.
        label: Name of the detected class.
        score: The detector's confidence, 0 to 1.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    label: str
    score: float


def boxes_in_lps(
    corners: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    *,
    affine: Affine,
    shape: tuple[int, ...],
    names: Mapping[int, str],
) -> list[Box]:
    """Convert a detector's output to boxes in LPS mm, highest score first.

    Args:
        corners: Lower and upper corners in index space, shape (N, 6).
        labels: Class values, shape (N,).
        scores: Confidences, shape (N,).
        affine: Index to RAS mm.
        shape: Voxels of the image; boxes are clipped to it, and dropped if nothing is left.
        names: Class value to name.
    """
    boxes = []
    for index in np.argsort(-scores, kind="stable"):
        low, high = np.clip(corners[index, :3], 0, shape), np.clip(corners[index, 3:], 0, shape)
        if not (high > low).all():
            continue
        vertices = np.array(list(product(*zip(low, high, strict=True))))
        lps = index_to_mm(affine, vertices) * (-1.0, -1.0, 1.0)
        least, most = lps.min(axis=0), lps.max(axis=0)
        value = int(labels[index])
        boxes.append(
            Box(
                center=_triple((least + most) / 2),
                size=_triple(most - least),
                label=names.get(value, str(value)),
                score=float(scores[index]),
            )
        )
    return boxes


def prediction(boxes: list[Box], shape: Shape, seconds: Mapping[str, float]) -> Prediction:
    """A prediction of boxes: an empty mask of `shape`, the boxes as `params`, and Slicer's file as `document`."""
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
        "orientation": AXIS_ALIGNED,
        "insideOut": False,
        "label": {"value": box.label},
        "controlPoints": [{"id": "1", "label": f"{box.label} {box.score:.2f}", "position": box.center}],
        "measurements": [],
    }


def _triple(values: npt.NDArray[Any]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
