"""Scribble maps: the voxels marked as foreground or background by scribbles, curves, clicks and a box.

3D Slicer uploads all segments in one label map with `label_info`, which maps values to segment names; the scribbles are
the segments `foreground_scribbles` and `background_scribbles`. Values hold for one request only; nothing is remembered
between requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.imaging.sparse_labels import SparseLabels, bounding_box
from rayapp.inference.arrays import Bools, Labels, Shape
from rayapp.inference.infer_task import Prompts
from rayapp.inference.prompts import outlines

Marks = Labels
"""A scribble map of a box or of all voxels: 0 where unmarked, else `BACKGROUND` or `FOREGROUND`."""
BACKGROUND = 1
FOREGROUND = 2

FOREGROUND_SCRIBBLES = "foreground_scribbles"
BACKGROUND_SCRIBBLES = "background_scribbles"
SEED_VOXELS = 10
"""Edge, in voxels, of the cube in a box's centre that becomes foreground if nothing else is marked as such."""


def parse_marks(label_map: npt.NDArray[Any], params: Mapping[str, Any], labels: Mapping[str, int]) -> SparseLabels:
    """Extract scribbles from an uploaded label map.

    If there are no scribbles, the segment that `selected_label_name` names (for example painted slices) is foreground.

    Args:
        label_map: Uploaded label map, (I, J, K).
        params: The request's parameters. Without `label_info`, scribbles have the two values after the model's last
            label, background first (2 and 3 for a model without labels).
        labels: The model's labels, name to value.

    Raises:
        BadRequest: If `label_info` is not a list of names and ids.
    """
    values = _values_by_name(params.get("label_info"))
    if not values:
        last = max((*labels.values(), 1))
        values = {BACKGROUND_SCRIBBLES: last + 1, FOREGROUND_SCRIBBLES: last + 2}
    box = bounding_box(label_map) or (slice(0, 0),) * 3
    drawn = label_map[box]
    marks = np.zeros(drawn.shape, dtype=np.uint8, order="F")
    for name, mark in ((FOREGROUND_SCRIBBLES, FOREGROUND), (BACKGROUND_SCRIBBLES, BACKGROUND)):
        if name in values:
            marks[drawn == values[name]] = mark
    selected = str(params.get("selected_label_name"))
    if selected in values and not marks.any():
        marks[drawn == values[selected]] = FOREGROUND
    i, j, k = label_map.shape
    lower = (box[0].start, box[1].start, box[2].start)
    return SparseLabels(shape=(i, j, k), lower=lower, part=marks)


def parse_start(label_map: npt.NDArray[Any], params: Mapping[str, Any], labels: Mapping[str, int]) -> Labels:
    """Convert an uploaded label map to a mask that a model can correct.

    Args:
        label_map: Uploaded label map, (I, J, K).
        params: The request's parameters. Without `label_info`, the uploaded values are the model's already.
        labels: The model's labels, name to value.

    Returns:
        For a model with labels, the mask with the model's values; for one without, 1 for the segment that `label` or
        `selected_label_name` names and 2 for all other segments.

    Raises:
        BadRequest: If `label_info` is not a list of names and ids, or without it a value exceeds 255.
    """
    values = _values_by_name(params.get("label_info"))
    if not values:
        if label_map.max(initial=0) > 255:
            raise BadRequest("label: the values of a mask to start from may be at most 255")
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


def build_marks(shape: Shape, prompts: Prompts, *, require_foreground: bool = True) -> SparseLabels:
    """Combine a request's scribbles, closed curves, clicks and box in one scribble map.

    Curves mark what they enclose as foreground and the voxels around that as background. Scribbles take precedence over
    curves, and clicks over scribbles; of two clicks on a voxel, that on background. Outside the box everything is
    background, whatever is drawn there.

    Args:
        shape: Voxels of the source image along i, j, k.
        prompts: The request's prompts.
        require_foreground: Seed a cube in the box's centre if nothing else in the box is foreground, and refuse
            prompts that mark no foreground at all.

    Returns:
        The scribble map, whose box is the annotator's, or else the smallest that contains what is drawn.

    Raises:
        BadRequest: If foreground is required and there is none.
    """
    curved = [
        (np.insert(low, axis, index), np.expand_dims(marks, axis))
        for (axis, index), inside in outlines.enclosed(prompts.curves, shape).items()
        if inside.any()
        for low, marks in [_with_background_line(inside)]
    ]
    clicked = [
        (np.array(point), mark)
        for name, mark in (("foreground", FOREGROUND), ("background", BACKGROUND))
        for point in prompts.clicks.get(name, ())
    ]
    marks = _canvas(shape, prompts, curved, [point for point, _ in clicked])
    for mark in (BACKGROUND, FOREGROUND):
        for low, plane in curved:
            where, drawn = marks.overlap(low, plane)
            np.copyto(where, drawn, where=(drawn == mark) & ((where == 0) | (mark == FOREGROUND)))
    if prompts.marks is not None:
        where, drawn = marks.overlap(prompts.marks.lower, prompts.marks.part)
        np.copyto(where, drawn, where=drawn > 0)
    for point, mark in clicked:
        where, _ = marks.overlap(point, np.zeros((1, 1, 1), dtype=np.uint8))
        where[:] = mark
    if not require_foreground:
        return marks
    if prompts.roi is not None and not marks.any(FOREGROUND):
        centre = tuple(slice(max(0, (n - SEED_VOXELS) // 2), (n + SEED_VOXELS) // 2) for n in marks.part.shape)
        cube = marks.part[centre]
        cube[cube == 0] = FOREGROUND
    if not marks.any(FOREGROUND):
        raise BadRequest("no foreground scribbles: draw on the structure, or a box around it")
    return marks


def _canvas(
    shape: Shape,
    prompts: Prompts,
    planes: Sequence[tuple[npt.NDArray[np.intp], Marks]],
    points: Sequence[npt.NDArray[np.intp]],
) -> SparseLabels:
    """An unmarked scribble map of the annotator's box, or else of the bounding box of everything drawn."""
    if prompts.roi is not None:
        return SparseLabels.blank(shape, *prompts.roi, beyond=BACKGROUND)
    boxes = [(low, low + plane.shape) for low, plane in planes] + [(point, point + 1) for point in points]
    if prompts.marks is not None and prompts.marks.part.size:
        boxes.append((np.array(prompts.marks.lower), np.array(prompts.marks.upper)))
    if not boxes:
        return SparseLabels.blank(shape, (0, 0, 0), (0, 0, 0))
    lows, highs = zip(*boxes, strict=True)
    return SparseLabels.blank(shape, np.min(lows, axis=0), np.max(highs, axis=0))


def _with_background_line(enclosed: Bools) -> tuple[npt.NDArray[np.intp], Marks]:
    """Marks that fix the outline on a slice: foreground inside it, and a line of background around it.

    Returns:
        Inclusive lower corner of the smallest rectangle that contains them, and the marks of that rectangle.
    """
    rows, columns = np.flatnonzero(enclosed.any(axis=1)), np.flatnonzero(enclosed.any(axis=0))
    low = np.maximum(0, (rows[0] - 1, columns[0] - 1))
    inside = enclosed[low[0] : rows[-1] + 2, low[1] : columns[-1] + 2]
    around = ndimage.binary_dilation(inside, outlines.NEIGHBOURS)
    return low, np.where(inside, FOREGROUND, around * BACKGROUND).astype(np.uint8)


def _values_by_name(label_info: object) -> dict[str, int]:
    """Label values by segment name; the first of several segments with one name counts."""
    if label_info is None:
        return {}
    if not isinstance(label_info, list):
        raise BadRequest("label_info must be a list of {name, id}")
    values: dict[str, int] = {}
    for segment in label_info:
        try:
            values.setdefault(str(segment["name"]), int(segment["id"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BadRequest("label_info must be a list of {name, id} with whole numbers as ids") from None
    return values
