"""Lower drawings to clicks: extreme points, strokes and closed curves for models that take clicks and boxes only.

Drawings become clicks for the network (a few, spread over the strokes and deep inside the curves), and are then
enforced in its answer: in a curve's slice the inside is the structure and the rest is not; strokes keep their label,
inside curves too; a structure ends at its extreme points (six of them, as in Roth et al., 2021, after DEXTR, Maninis et
al., 2018), and nothing is outside the box, whatever is clicked or drawn there. Clicks hold over strokes, and strokes
over curves; those that a later stroke contradicts are no longer among the prompts (`rayapp.inference.prompts.parse`).
Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Labels, Shape
from rayapp.inference.infer_task import Drawing, Point, Prompts, TaskInfo
from rayapp.inference.prompts import outlines
from rayapp.inference.prompts.parse import BACKGROUND as BACKGROUND_NAME
from rayapp.inference.prompts.parse import FOREGROUND as FOREGROUND_NAME
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND

STROKE_CLICKS = 8
"""Maximum number of clicks placed on all strokes on a structure, and on all its background strokes."""
CURVE_CLICKS = 3
"""Number of clicks placed in each connected part of a region that closed curves enclose on a slice."""
MIN_DEPTH = 0.6
"""Least depth of those clicks, relative to the largest depth in the part."""


def lower_drawings(prompts: Prompts, info: TaskInfo, shape: Shape) -> Prompts:
    """Add the clicks and the box that stand in for drawings a model cannot take.

    For a single-structure model all clicks on the structure become `foreground`, whatever its name.

    Args:
        prompts: The annotator's prompts.
        info: The model.
        shape: Voxels of the source image along i, j, k.
    """
    single = info.takes_drawings or not info.structures
    renamed = {prompts.label: FOREGROUND_NAME} if single else {}
    clicks: dict[str, list[Point]] = {}
    for points_by_name in (prompts.clicks, prompts.extremes):
        for name, points in points_by_name.items():
            _append(clicks, renamed.get(name, name), points)
    if not info.takes_drawings:
        for name, drawing in _drawings_by_name(prompts, info).items():
            if drawing.marks is not None:
                for mark, marked in ((FOREGROUND, name), (BACKGROUND, BACKGROUND_NAME)):
                    _append(clicks, marked, farthest_point_sample(drawing.marks.voxels(mark), STROKE_CLICKS))
            for where, inside in outlines.enclosed(drawing.curves, shape).items():
                for voxels in _deep_voxels(inside, where):
                    _append(clicks, name, farthest_point_sample(voxels, CURVE_CLICKS))
    roi = prompts.roi
    for name, points in prompts.extremes.items():
        if single and renamed.get(name, name) == FOREGROUND_NAME:
            roi = _intersection(roi, bounding_box(points))
    return replace(prompts, clicks=clicks, roi=roi)


def enforce_drawings(labels: Labels, prompts: Prompts, info: TaskInfo) -> Labels:
    """Make a model's answer agree with everything that was drawn.

    Args:
        labels: The model's label map, (I, J, K); not modified.
        prompts: The annotator's prompts, before `lower_drawings`.
        info: The model.

    Returns:
        A corrected copy, or `labels` itself if nothing was drawn.
    """
    drawings = {} if info.takes_drawings else _drawings_by_name(prompts, info)
    if not drawings and not prompts.extremes:
        return labels
    enforced = labels.copy(order="K")
    for name, drawing in drawings.items():
        outlines.enforce_curves(enforced, drawing.curves, _label_value(name, info))
    for name, drawing in drawings.items():
        if drawing.marks is not None:
            drawing.marks.paint(enforced, FOREGROUND, _label_value(name, info))
            drawing.marks.paint(enforced, BACKGROUND, 0)
    for name, points in prompts.extremes.items():
        for beyond in _outside(enforced, bounding_box(points)):
            beyond[beyond == _label_value(name, info)] = 0
    for name, points in prompts.clicks.items():  # a click beyond extreme points says that these were not the outermost
        for point in points:
            enforced[point] = 0 if name == BACKGROUND_NAME else _label_value(name, info)
    return enforced if info.takes_drawings else clear_outside(enforced, prompts.roi)


def clear_outside(labels: Labels, roi: tuple[Point, Point] | None) -> Labels:
    """Set voxels outside a box to background, in place.

    Args:
        labels: Label map (I, J, K); modified.
        roi: Inclusive lower and exclusive upper corner; None changes nothing.

    Returns:
        `labels` itself.
    """
    if roi is not None:
        for beyond in _outside(labels, roi):
            beyond[beyond > 0] = 0  # an array of zeros takes no memory while nothing is written
    return labels


def _outside(labels: Labels, box: tuple[Point, Point]) -> Iterator[Labels]:
    """Views of a label map that cover everything outside a box."""
    for axis, (first, last) in enumerate(zip(*box, strict=True)):
        yield labels.swapaxes(0, axis)[:first]
        yield labels.swapaxes(0, axis)[last:]


def bounding_box(points: Sequence[Point]) -> tuple[Point, Point]:
    """The smallest box that contains the points: inclusive lower and exclusive upper corner."""
    low, high = np.min(points, axis=0), np.max(points, axis=0) + 1
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


def farthest_point_sample(points: npt.NDArray[np.intp], count: int) -> list[Point]:
    """Farthest-point sampling: up to `count` distinct points spread over a set.

    The first is the point nearest to the centroid, each further one the point farthest from all chosen before.

    Args:
        points: Voxel indices, shape (N, 3).
        count: Largest number of points to choose.
    """
    chosen: list[Point] = []
    if len(points):
        distance = -np.linalg.norm(points - points.mean(axis=0), axis=1)
        while len(chosen) < count and (not chosen or distance.max() > 0):
            point = points[int(distance.argmax())]
            to_point = np.linalg.norm(points - point, axis=1)
            distance = to_point if not chosen else np.minimum(distance, to_point)
            chosen.append((int(point[0]), int(point[1]), int(point[2])))
    return chosen


def _drawings_by_name(prompts: Prompts, info: TaskInfo) -> Mapping[str, Drawing]:
    """Drawings by structure; for a single-structure model they all belong to its foreground."""
    if info.structures or (prompts.marks is None and not prompts.curves):
        return prompts.drawings
    return {FOREGROUND_NAME: Drawing(marks=prompts.marks, curves=prompts.curves)}


def _label_value(name: str, info: TaskInfo) -> int:
    """A structure's value in the mask; `foreground` stands for the model's only structure, or its first."""
    return info.structures.get(name, 1)


def _deep_voxels(inside: Bools, where: outlines.Slice) -> Iterator[npt.NDArray[np.intp]]:
    """For each connected part of a slice's mask, its voxels of at least `MIN_DEPTH`, shape (N, 3)."""
    axis, index = where
    for around in ndimage.find_objects(inside.view(np.uint8)):
        drawn, corner = inside[around], [side.start for side in around]
        depth = ndimage.distance_transform_edt(np.pad(drawn, 1))[1:-1, 1:-1]
        parts, _ = ndimage.label(drawn, outlines.NEIGHBOURS)
        for part, box in enumerate(ndimage.find_objects(parts), start=1):
            within = np.where(parts[box] == part, depth[box], 0)
            pixels = np.argwhere(within >= MIN_DEPTH * within.max()) + [side.start for side in box] + corner
            yield np.insert(pixels, axis, index, axis=1)


def _append(clicks: dict[str, list[Point]], name: str, points: Sequence[Point]) -> None:
    if points:
        clicks.setdefault(name, []).extend(points)


def _intersection(first: tuple[Point, Point] | None, second: tuple[Point, Point]) -> tuple[Point, Point]:
    """The intersection of two boxes, or the second box if they do not intersect."""
    if first is None:
        return second
    low, high = np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
    return bounding_box([tuple(low), tuple(high - 1)]) if (low < high).all() else second
