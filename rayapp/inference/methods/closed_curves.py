"""ClosedCurvesTask: from closed curves, or painted slices, on a few slices to a volume.

The drawn slices are taken as they are, each curve filled; the slices between them and beyond are interpolated by shape
and by what the structure looks like on the drawn ones, with the border along edges (the idea of Biomedisa, Lösel et
al., 2020). Stateless; calls may come from any thread.
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

AROUND = np.ones((3, 3), dtype=bool)


class ClosedCurvesTask(ScribblesTask):
    """Slices to a volume; `fit` is how appearance is learnt."""

    def predict(self, prepared: Scan, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """The structure as label 1, on the drawn slices exactly as drawn.

        Raises:
            BadRequest: without any foreground, or for an optimiser that is not there.
        """
        marks = build_marks(prepared.shape, prompts)
        axis = drawing_axis(marks, prepared.spacing)
        drawn = _filled(marks, axis)
        for k, inside in drawn.items():
            _plane(marks, axis, k)[:] = _outlined(_plane(marks, axis, k), inside)
        prediction = super().predict(prepared, dataclasses.replace(prompts, marks=marks), config)
        for k, inside in drawn.items():
            _plane(prediction.labels, axis, k)[:] = inside
        return prediction


def _plane(array: Any, axis: int, index: int) -> Any:
    """A view of one slice."""
    return np.moveaxis(array, axis, -1)[..., index]


def _filled(marks: Marks, axis: int) -> dict[int, Bools]:
    """Each drawn slice's foreground with its curves filled."""
    drawn = np.flatnonzero((marks == FOREGROUND).any(axis=tuple(other_axes(axis))))
    return {k: ndimage.binary_fill_holes(_plane(marks, axis, k) == FOREGROUND) for k in map(int, drawn)}


def _outlined(marks: Marks, inside: Bools) -> Marks:
    """Marks that leave no doubt where the outline runs: foreground in it, a line of background around it."""
    around = ndimage.binary_dilation(inside, AROUND) & ~inside
    return np.where(inside, FOREGROUND, np.where(around, BACKGROUND, marks)).astype(np.uint8)
