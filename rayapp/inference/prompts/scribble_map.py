"""Marks: which voxels the annotator scribbled on, from the label map and `label_info` that clients upload.

3D Slicer uploads all segments in one label map, and `label_info` says which value is which; the scribbles are segments
named `foreground_scribbles` and `background_scribbles`. Values belong to the request: nothing here is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest
from rayapp.inference.infer_task import Point, Prompts

Marks = npt.NDArray[np.uint8]
"""(I, J, K): 0 where nothing was said, else `BACKGROUND` or `FOREGROUND`."""
BACKGROUND = 1
FOREGROUND = 2

FOREGROUND_SCRIBBLES = "foreground_scribbles"
BACKGROUND_SCRIBBLES = "background_scribbles"
CUBE = 10
"""Voxels along each side of the cube in a box's centre that is foreground when nothing else is said to be."""


def parse_marks(label_map: npt.NDArray[Any], params: Mapping[str, Any], labels: Mapping[str, int]) -> Marks:
    """The scribbles in an uploaded label map.

    Without `label_info` they have the two values behind the model's `labels`, background first; for a model without
    labels, 2 and 3. Where nothing is scribbled, the voxels of the segment that `selected_label_name` names (painted
    slices, say) are foreground.

    Raises:
        BadRequest: if `label_info` is not a list of names and ids.
    """
    values = _values(params.get("label_info"))
    if not values:
        last = max((*labels.values(), 1))
        values = {BACKGROUND_SCRIBBLES: last + 1, FOREGROUND_SCRIBBLES: last + 2}
    marks = np.zeros(label_map.shape, dtype=np.uint8, order="F")
    for name, mark in ((FOREGROUND_SCRIBBLES, FOREGROUND), (BACKGROUND_SCRIBBLES, BACKGROUND)):
        if name in values:
            marks[label_map == values[name]] = mark
    selected = str(params.get("selected_label_name"))
    if selected in values and not marks.any():
        marks[label_map == values[selected]] = FOREGROUND
    return marks


def parse_start(label_map: npt.NDArray[Any], params: Mapping[str, Any], labels: Mapping[str, int]) -> Marks:
    """An uploaded label map as a mask to start from: with the model's values for its `labels`; for a model without, 1
    for the segment that `label` or `selected_label_name` names and 2 for all others. Without `label_info` the values
    are the model's already.

    Raises:
        BadRequest: if `label_info` is not a list of names and ids, or a value fits no byte.
    """
    values = _values(params.get("label_info"))
    if not values:
        if label_map.max(initial=0) > 255:
            raise BadRequest("label: a mask to start from has values up to 255")
        return label_map.astype(np.uint8, order="F")
    start = np.zeros(label_map.shape, dtype=np.uint8, order="F")
    if not labels:
        own = values.get(str(params.get("label")), values.get(str(params.get("selected_label_name"))))
        start[label_map > 0] = 2
        start[label_map == own] = 1
    for name, value in labels.items():
        if value and name in values:
            start[label_map == values[name]] = value
    return start


def marked(shape: tuple[int, int, int], prompts: Prompts, *, seeded: bool = True) -> Marks:
    """All that a request marks on an image of `shape`: scribbles, closed curves, clicks and the box.

    Outside the box is background, whatever was scribbled there. When `seeded`, a cube in its centre is foreground if
    nothing else is.

    Raises:
        BadRequest: if nothing is foreground in the end, though something should be (`seeded`).
    """
    given = prompts.marks
    marks = np.zeros(shape, dtype=np.uint8, order="F")
    inside = tuple(slice(a, b) for a, b in zip(*(prompts.roi or ((0, 0, 0), shape)), strict=True))
    if prompts.roi is not None:
        marks[:] = BACKGROUND
        marks[inside] = 0
    part = marks[inside]
    if given is not None:
        np.copyto(part, given[inside])
    for curve in prompts.curves:
        within = enclosed(curve, shape)
        marks[within] = np.where(marks[within] > 0, marks[within], FOREGROUND)
    for name, mark in (("background", BACKGROUND), ("foreground", FOREGROUND)):
        for point in prompts.clicks.get(name, ()):
            marks[point] = marks[point] or mark
    if not seeded:
        return marks
    if prompts.roi is not None and not (part == FOREGROUND).any():
        middle = part[tuple(slice(max(0, (n - CUBE) // 2), (n + CUBE) // 2) for n in part.shape)]
        middle[middle == 0] = FOREGROUND
    if not (part == FOREGROUND).any():
        raise BadRequest("no foreground scribbles: draw on the structure, or a box around it")
    return marks


def enclosed(curve: Sequence[Point], shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.intp], ...]:
    """Indices of the voxels in a closed curve on one slice, with those that it runs through."""
    from skimage.draw import polygon, polygon_perimeter  # slow to import

    points = np.array(curve)
    axis = max(axis for axis in range(3) if np.ptp(points[:, axis]) == 0)
    a, b = (n for n in range(3) if n != axis)
    size = (shape[a], shape[b])
    inside, line = polygon(points[:, a], points[:, b], size), polygon_perimeter(points[:, a], points[:, b], size)
    found = [np.empty(0, dtype=np.intp)] * 3
    found[a], found[b] = (np.concatenate(both) for both in zip(inside, line, strict=True))
    found[axis] = np.full(len(found[a]), points[0, axis])
    return tuple(found)


def _values(label_info: object) -> dict[str, int]:
    """Values by segment name; the first of a name counts."""
    if label_info is None:
        return {}
    if not isinstance(label_info, list):
        raise BadRequest("label_info must be a list of {name, id}")
    values: dict[str, int] = {}
    for segment in label_info:
        try:
            values.setdefault(str(segment["name"]), int(segment["id"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadRequest("label_info must be a list of {name, id}, the ids being whole numbers") from None
    return values
