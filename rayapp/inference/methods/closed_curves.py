"""ClosedCurvesTask: from closed curves or painted slices on a few slices to a volume.

Drawn slices are taken as they are, with curves filled. The slices between and beyond them are segmented by interpolated
shape and by the appearance learnt from the drawn slices, with borders along image edges (the idea of Biomedisa, Lösel
et al., 2020). Stateless and thread-safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.inference.arrays import Bools
from rayapp.inference.energy.scan import Scan, drawing_axis, other_axes
from rayapp.inference.infer_task import Prediction, Prompts
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks

NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""A voxel and its eight neighbours in the slice."""


class ClosedCurvesTask(ScribblesTask):
    """Segmentation from closed curves or painted slices. Arguments as of `ScribblesTask`."""

    def predict(self, prepared: Scan, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the drawn structure as label 1; the drawn slices are exactly as drawn.

        Raises:
            BadRequest: Without any foreground, or for an unknown optimiser.
        """
        marks = build_marks(prepared.shape, prompts)
        axis = drawing_axis(marks, prepared.spacing)
        drawn = _filled_slices(marks, axis)
        for k, inside in drawn.items():
            _plane(marks, axis, k)[:] = _outline_marks(_plane(marks, axis, k), inside)
        prediction = super().predict(prepared, dataclasses.replace(prompts, marks=marks), config)
        for k, inside in drawn.items():
            _plane(prediction.labels, axis, k)[:] = inside
        return prediction


def _plane(array: Any, axis: int, index: int) -> Any:
    """A view of one slice."""
    return np.moveaxis(array, axis, -1)[..., index]


def _filled_slices(marks: Marks, axis: int) -> dict[int, Bools]:
    """Index of each drawn slice to its foreground with holes filled."""
    drawn = np.flatnonzero((marks == FOREGROUND).any(axis=tuple(other_axes(axis))))
    return {k: ndimage.binary_fill_holes(_plane(marks, axis, k) == FOREGROUND) for k in map(int, drawn)}


def _outline_marks(marks: Marks, inside: Bools) -> Marks:
    """Marks of one slice that fix the outline: foreground inside it, and a line of background around it."""
    around = ndimage.binary_dilation(inside, NEIGHBOURS) & ~inside
    return np.where(inside, FOREGROUND, np.where(around, BACKGROUND, marks)).astype(np.uint8)
