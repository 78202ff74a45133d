"""Drawings: extreme points, strokes and closed curves for models that know clicks and boxes only.

What was drawn becomes clicks for the network (a few, spread over the strokes and deep inside the curves), and holds in
the answer whatever the network made of them: strokes keep their label, a curve's inside is the structure on its slice
and the rest of the slice is not, and a structure ends where its extreme points say (six of them, as of Roth et al.,
2021; after DEXTR, Maninis et al., 2018). Clicks hold over drawings. Pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.infer_task import Drawing, Point, Prompts, TaskInfo
from rayapp.inference.prompts.parse import BACKGROUND as OUTSIDE
from rayapp.inference.prompts.parse import FOREGROUND as INSIDE
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, enclosed

Labels = npt.NDArray[np.uint8]

STROKE_CLICKS = 8
"""Clicks for all strokes on a structure, and as many for those beside it."""
CURVE_CLICKS = 3
"""Clicks in each closed curve."""
DEEP = 0.6
"""They lie at least this share of the largest depth inside it."""


def understood(prompts: Prompts, info: TaskInfo, shape: tuple[int, int, int]) -> Prompts:
    """The prompts with clicks and a box for all that this model would not see in them. For a model of one structure,
    whatever it is called, clicks on it are `foreground`."""
    one = info.draws or not info.structures
    names = {prompts.label: INSIDE} if one else {}
    clicks: dict[str, list[Point]] = {}
    for said in (prompts.clicks, prompts.extremes):
        for name, points in said.items():
            _add(clicks, names.get(name, name), points)
    if not info.draws:
        for name, drawing in _drawings(prompts, info).items():
            if drawing.marks is not None:
                _add(clicks, name, spread(np.argwhere(drawing.marks == FOREGROUND), STROKE_CLICKS))
                _add(clicks, OUTSIDE, spread(np.argwhere(drawing.marks == BACKGROUND), STROKE_CLICKS))
            for curve in drawing.curves:
                _add(clicks, name, spread(_deep(curve, shape), CURVE_CLICKS))
    roi = prompts.roi
    for name, points in prompts.extremes.items():
        if one and names.get(name, name) == INSIDE:
            roi = _both(roi, box_of(points))
    return replace(prompts, clicks=clicks, roi=roi)


def obeyed(labels: Labels, prompts: Prompts, info: TaskInfo) -> Labels:
    """The answer in which all that was drawn holds; the array itself where nothing was."""
    drawings = {} if info.draws else _drawings(prompts, info)
    if not drawings and not prompts.extremes:
        return labels
    held = labels.copy(order="K")
    for name, points in prompts.extremes.items():
        within = np.zeros(held.shape, dtype=bool)
        within[_slices(box_of(points))] = True
        held[(held == _value(name, info)) & ~within] = 0
    for name, drawing in drawings.items():
        _hold(held, drawing, _value(name, info))
    for name, points in prompts.clicks.items():
        for point in points:
            held[point] = 0 if name == OUTSIDE else _value(name, info)
    return held


def box_of(points: Sequence[Point]) -> tuple[Point, Point]:
    """The box that just holds the points: lower and upper (exclusive) corner."""
    low, high = np.min(points, axis=0), np.max(points, axis=0) + 1
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


def spread(points: npt.NDArray[np.intp], count: int) -> list[Point]:
    """Up to `count` of the points (N, 3): the one nearest to their middle, then always the one farthest from those."""
    chosen: list[Point] = []
    if len(points):
        away = -np.linalg.norm(points - points.mean(axis=0), axis=1)
        while len(chosen) < count and (not chosen or away.max() > 0):
            point = points[int(away.argmax())]
            near = np.linalg.norm(points - point, axis=1)
            away = near if not chosen else np.minimum(away, near)
            chosen.append((int(point[0]), int(point[1]), int(point[2])))
    return chosen


def _drawings(prompts: Prompts, info: TaskInfo) -> Mapping[str, Drawing]:
    """By name; what is drawn for a model of one structure, whatever it is called, is on that one."""
    if info.structures or (prompts.marks is None and not prompts.curves):
        return prompts.drawings
    return {INSIDE: Drawing(marks=prompts.marks, curves=prompts.curves)}


def _value(name: str, info: TaskInfo) -> int:
    """Of the structure in a mask; `foreground` means the one that a model has, or the first."""
    return info.structures.get(name, 1)


def _hold(labels: Labels, drawing: Drawing, value: int) -> None:
    slices: dict[tuple[int, int], list[tuple[npt.NDArray[np.intp], ...]]] = {}
    for curve in drawing.curves:
        slices.setdefault(_slice(curve), []).append(enclosed(curve, _shape(labels)))
    for (axis, at), insides in slices.items():
        plane = np.moveaxis(labels, axis, -1)[..., at]
        plane[plane == value] = 0
        for inside in insides:
            labels[inside] = value
    if drawing.marks is not None:
        labels[drawing.marks == FOREGROUND] = value
        labels[drawing.marks == BACKGROUND] = 0


def _deep(curve: Sequence[Point], shape: tuple[int, int, int]) -> npt.NDArray[np.intp]:
    """The voxels deep inside a closed curve."""
    axis, _ = _slice(curve)
    inside = np.transpose(enclosed(curve, shape))
    corner = inside.min(axis=0)
    mask = np.zeros(inside.max(axis=0) - corner + 1, dtype=bool)
    mask[tuple((inside - corner).T)] = True
    depth = ndimage.distance_transform_edt(np.pad(mask.squeeze(axis), 1))[1:-1, 1:-1]
    return np.asarray(np.argwhere(np.expand_dims(depth >= DEEP * depth.max(), axis)) + corner)


def _slice(curve: Sequence[Point]) -> tuple[int, int]:
    """The axis across a curve's slice, the last one that it may be, and the slice's index."""
    axis = max(axis for axis in range(3) if len({point[axis] for point in curve}) == 1)
    return axis, curve[0][axis]


def _add(clicks: dict[str, list[Point]], name: str, points: Sequence[Point]) -> None:
    if points:
        clicks.setdefault(name, []).extend(points)


def _both(one: tuple[Point, Point] | None, other: tuple[Point, Point]) -> tuple[Point, Point]:
    """Where two boxes overlap; the other alone where they do not."""
    if one is None:
        return other
    low, high = np.maximum(one[0], other[0]), np.minimum(one[1], other[1])
    return box_of([tuple(low), tuple(high - 1)]) if (low < high).all() else other


def _slices(box: tuple[Point, Point]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*box, strict=True))


def _shape(labels: Labels) -> tuple[int, int, int]:
    i, j, k = labels.shape
    return i, j, k
