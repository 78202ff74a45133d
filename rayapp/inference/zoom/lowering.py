"""Prompts of a request, in voxels, as marks in millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rayapp.inference.infer_task import CurvePoint, Point, Prompts
from rayapp.inference.prompts import outlines
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.scribble_map import BACKGROUND as OFF
from rayapp.inference.prompts.scribble_map import FOREGROUND as ON
from rayapp.inference.zoom.glance import Mask
from rayapp.inference.zoom.marks import Box, Lasso, Marks

STROKE_PLACES = 40_000
"""Painted voxels that are kept, at most, evenly thinned."""


def marks_of(prompts: Prompts, spacing: NDArray[np.float64]) -> Marks:
    """The marks that a request's prompts are, for a model of one structure.

    Args:
        prompts: in voxels of the image; clicks on the structure are `foreground`, or carry the prompts' label.
        spacing: of the image, millimetres.
    """
    marks = Marks(pitch=float(spacing.min()))
    marks.include += [np.array(point) * spacing for point in foreground(prompts)]
    marks.exclude += [np.array(point) * spacing for point in prompts.clicks.get(BACKGROUND, ())]
    for points in prompts.extremes.values():
        marks.include += [np.array(point) * spacing for point in points]
        marks.boxes.append(_box(np.min(points, 0), np.max(points, 0) + 1, spacing))
    if prompts.roi is not None:
        marks.boxes.append(_box(np.array(prompts.roi[0]), np.array(prompts.roi[1]), spacing))
    marks.lassos += [lasso_of(curve, spacing) for curve in prompts.curves]
    if prompts.marks is not None:
        for value, strokes in ((ON, marks.strokes), (OFF, marks.erasers)):
            painted = np.argwhere(prompts.marks == value)
            if len(painted):
                strokes.append(painted[:: 1 + len(painted) // STROKE_PLACES] * spacing)
    return marks


def steps_of(prompts: Prompts, spacing: NDArray[np.float64]) -> list[Marks]:
    """The marks after each prompt, in the order in which a request's prompts are answered.

    That is the order of its turns where it has some. Else whatever was drawn and the first click on the structure are
    one step, each further click one more, and last comes all that the structure is not.

    Args:
        prompts: in voxels of the image.
        spacing: of the image, millimetres.
    """
    steps: list[Marks] = []
    for turn in prompts.turns:
        more = marks_of(turn, spacing)
        if more.denied() or more.bounds() is not None:
            steps.append(steps[-1].plus(more) if steps else more)
    if steps:
        return steps
    marks = marks_of(prompts, spacing)
    for count in range(min(1, len(marks.include)), len(marks.include) + 1):
        steps.append(replace(marks.copy(), include=marks.include[:count], exclude=[], erasers=[]))
    return [*steps, marks] if marks.denied() else steps


def lasso_of(curve: Sequence[CurvePoint], spacing: NDArray[np.float64]) -> Lasso:
    """A closed curve on one slice, in fractional voxels, as a lasso."""
    points = np.array(curve)
    axis, _ = outlines.slice_of(curve)
    others = [other for other in range(3) if other != axis]
    at = float(points[0, axis] * spacing[axis])
    return Lasso(axis, at, float(spacing[axis]), points[:, others] * spacing[others])


def start_of(prompts: Prompts) -> Mask | None:
    """The mask to start from, if there is one that is not empty."""
    if prompts.start is None or not (prompts.start == 1).any():
        return None
    inside = prompts.start == 1
    sides = []
    for axis in range(3):
        marked = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        sides.append(slice(int(marked[0]), int(marked[-1]) + 1))
    region = (sides[0], sides[1], sides[2])
    return Mask(region, np.asarray(inside[region]))


def foreground(prompts: Prompts) -> tuple[Point, ...]:
    """The clicks on the structure, under its own name or under none."""
    names = dict.fromkeys((prompts.label or FOREGROUND, FOREGROUND))
    return tuple(point for name in names if name != BACKGROUND for point in prompts.clicks.get(name, ()))


def _box(low: NDArray[np.int64], high: NDArray[np.int64], spacing: NDArray[np.float64]) -> Box:
    """From voxels, upper corner exclusive, to the box of their outer sides."""
    return Box.of((low - 0.5) * spacing, (high - 0.5) * spacing)
