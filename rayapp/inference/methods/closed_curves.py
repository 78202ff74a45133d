"""ClosedCurvesTask: from closed curves or painted slices on a few slices to a volume.

Drawn slices are taken as they are: what curves enclose, or the painted voxels, without those painted as background. The
slices between and beyond them are segmented by interpolated shape and by the appearance learnt from the drawn slices,
with borders along image edges (the idea of Biomedisa, Lösel et al., 2020). Stateless and thread-safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.arrays import Bools
from rayapp.inference.energy.scan import Scan, drawing_axis, other_axes
from rayapp.inference.infer_task import Prediction, Prompts
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.outlines import NEIGHBOURS, Slice, plane_of, slice_of
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks


class ClosedCurvesTask(ScribblesTask):
    """Segmentation from closed curves or painted slices. Arguments as for `ScribblesTask`."""

    def predict(self, prepared: Scan, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the drawn structure as label 1; the drawn slices are exactly as drawn.

        Raises:
            BadRequest: Without any foreground, or for an unknown optimiser.
        """
        marks = build_marks(prepared.shape, prompts)
        marks = marks.covering(np.array(marks.lower) - 1, np.array(marks.upper) + 1)
        slices = [
            where
            for where in _drawn_slices(prepared, prompts)
            if 0 <= _within(marks, where)[1] < marks.part.shape[where[0]]
        ]
        planes = {where: plane_of(marks.part, _within(marks, where)) for where in slices}
        drawn = {where: plane == FOREGROUND for where, plane in planes.items()}
        for where, inside in drawn.items():
            _mark_outline(planes[where], inside)
        prediction = super().predict(prepared, dataclasses.replace(prompts, marks=marks), config)
        for where, inside in drawn.items():
            plane_of(prediction.labels, where)[:] = 0
            plane_of(prediction.labels[marks.box], _within(marks, where))[:] = inside
        return prediction


def _within(marks: SparseLabels, where: Slice) -> Slice:
    """The index into the scribble map's box of a slice of the image."""
    axis, index = where
    return axis, index - marks.lower[axis]


def _drawn_slices(scan: Scan, prompts: Prompts) -> list[Slice]:
    """The slices with curves or, if there are none, the painted ones; strokes on slices with curves remain strokes."""
    if prompts.curves:
        return list(dict.fromkeys(slice_of(curve) for curve in prompts.curves))
    if prompts.marks is None or not prompts.marks.any(FOREGROUND):
        return []
    axis = drawing_axis(prompts.marks, scan.spacing)
    painted = (prompts.marks.part == FOREGROUND).any(axis=tuple(other_axes(axis)))
    return [(axis, int(index) + prompts.marks.lower[axis]) for index in np.flatnonzero(painted)]


def _mark_outline(marks: Marks, inside: Bools) -> None:
    """Mark a line of background around the drawing on a slice, where nothing else is marked."""
    around = ndimage.binary_dilation(inside, NEIGHBOURS) & ~inside
    marks[around & (marks == 0)] = BACKGROUND
