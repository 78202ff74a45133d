"""Conversion of a request's prompts, in voxels, to marks in millimetres."""

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
"""Maximum number of scribbled voxels that are kept, thinned evenly."""


def marks_of(prompts: Prompts, spacing: NDArray[np.float64]) -> Marks:
    """The marks for a request's prompts, for a single-structure model.

    Args:
        prompts: in voxels of the image; clicks on the structure are under `foreground`, or under the prompts' label.
        spacing: voxel spacing of the image, mm.
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
    """The marks after each prompt, in the order in which the prompts are answered.

    That is the order of the turns, if the prompts have any. Otherwise all drawings and the first click on the structure
    form the first step, each further click on it one more, and everything that excludes voxels the last.

    Args:
        prompts: in voxels of the image.
        spacing: voxel spacing of the image, mm.
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
    """A closed curve on one slice, in fractional voxels, as a lasso in mm."""
    points = np.array(curve)
    axis, _ = outlines.slice_of(curve)
    others = [other for other in range(3) if other != axis]
    at = float(points[0, axis] * spacing[axis])
    return Lasso(axis, at, float(spacing[axis]), points[:, others] * spacing[others])


def start_of(prompts: Prompts) -> Mask | None:
    """The mask to start from; None if there is none or it is empty."""
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
    """The clicks on the structure, under its own name or under `foreground`."""
    names = dict.fromkeys((prompts.label or FOREGROUND, FOREGROUND))
    return tuple(point for name in names if name != BACKGROUND for point in prompts.clicks.get(name, ()))


def _box(low: NDArray[np.int64], high: NDArray[np.int64], spacing: NDArray[np.float64]) -> Box:
    """Convert a box from voxels, upper corner exclusive, to the outer faces of its voxels in mm."""
    return Box.of((low - 0.5) * spacing, (high - 0.5) * spacing)
