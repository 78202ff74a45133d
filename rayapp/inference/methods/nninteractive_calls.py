"""Conversion of prompts to calls of nnInteractive's inference session, in its order of axes.

The session takes volumes as SimpleITK gives them, with the axes k, j, i of the file, without resampling or
reorientation, so an index is simply reversed. The order of calls matters: the session answers each prompt on top of the
previous ones, and older prompts fade.

    click                 add_point_interaction
    box                   add_bbox_interaction; for a network that takes flat boxes only, its middle in each plane
    extreme points        their bounding box
    closed curves         add_lasso_interaction, with the region that a prompt's curves enclose on each slice
    strokes               add_scribble_interaction, once for those on the structure and once for those off it
    mask to start from    add_initial_seg_interaction, before all others
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.inference.arrays import Bools, Shape
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.prompts import outlines
from rayapp.inference.prompts.parse import BACKGROUND as BACKGROUND_NAME
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import bounding_box
from rayapp.inference.zoom.lowering import foreground

POINTS, BBOX_2D, BBOX_3D, LASSO, SCRIBBLE = "points", "bbox2d", "bbox3d", "lasso", "scribble"
"""Kinds of prompts, as `supported_interactions` of a model folder names them."""
START = "initial_label"
"""The name of a mask to start from in `supported_interactions`."""

Abilities = Mapping[str, bool]
"""Maps a kind of prompt to whether the network was trained for it; missing kinds count as False."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a method of the session: the method's name and keyword arguments."""

    method: str
    arguments: Mapping[str, Any]

    @property
    def includes(self) -> bool:
        """True unless the call excludes voxels from the structure."""
        return bool(self.arguments.get("include_interaction", True))

    def apply(self, session: Any) -> None:
        """Make the call."""
        getattr(session, self.method)(**self.arguments)

    def digest(self, before: bytes) -> bytes:
        """A key of this call after earlier calls with the key `before`; equal only for equal calls in the same
        order.
        """
        hashed = hashlib.blake2b(before, digest_size=16)
        hashed.update(self.method.encode())
        for name, value in self.arguments.items():
            hashed.update(name.encode())
            hashed.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return hashed.digest()


def calls_of(prompts: Prompts, shape: Shape, abilities: Abilities) -> list[Call]:
    """The session's calls for a request's prompts.

    They are in the order in which the prompts were made, if that is known (`Prompts.turns`). Otherwise boxes, curves,
    strokes on the structure and clicks on it come first, then prompts off it.

    Args:
        prompts: In voxels of the image, (i, j, k).
        shape: Voxels of the image along i, j, k.
        abilities: Kinds of prompts that the network takes.

    Raises:
        BadRequest: For a kind of prompt that the network does not take.
    """
    calls = []
    if prompts.start is not None and (prompts.start == 1).any():
        _require(START, abilities, "a mask to start from")
        start = np.ascontiguousarray((prompts.start == 1).T.astype(np.uint8))
        calls.append(Call(method="add_initial_seg_interaction", arguments={"initial_seg": start}))
    for turn in prompts.turns or (prompts,):
        calls += _calls_of_turn(turn, shape, abilities)
    return calls


def _calls_of_turn(prompts: Prompts, shape: Shape, abilities: Abilities) -> Iterator[Call]:
    extremes = {point for points in prompts.extremes.values() for point in points}
    boxes = [bounding_box(points) for points in prompts.extremes.values() if points]
    for low, high in dict.fromkeys((prompts.roi, *boxes) if prompts.roi is not None else boxes):
        yield from _box(low, high, abilities)
    for where, inside in outlines.enclosed(prompts.curves, shape).items():
        _require(LASSO, abilities, "closed curves")
        axis, index = where
        corner = tuple(index if n == axis else 0 for n in range(3))
        yield _drawn("add_lasso_interaction", np.expand_dims(inside, axis), corner, include=True)
    clicks = {True: foreground(prompts), False: tuple(prompts.clicks.get(BACKGROUND_NAME, ()))}
    for include, value in ((True, FOREGROUND), (False, BACKGROUND)):
        if prompts.marks is not None and prompts.marks.any(value):
            _require(SCRIBBLE, abilities, "strokes")
            yield _drawn("add_scribble_interaction", prompts.marks.part == value, prompts.marks.lower, include=include)
        for point in clicks[include]:
            if point in extremes:  # which `lower_drawings` adds to the clicks; their box says more
                continue
            _require(POINTS, abilities, "clicks")
            arguments = {"coordinates": tuple(reversed(point)), "include_interaction": include}
            yield Call(method="add_point_interaction", arguments=arguments)


def _box(low: Point, high: Point, abilities: Abilities) -> Iterator[Call]:
    """Calls for a box, upper corner exclusive.

    It is one call, or for a network that takes flat boxes only one in each plane through its middle; the answer is that
    to the last call.
    """
    sides = [[first, last] for first, last in zip(reversed(low), reversed(high), strict=True)]
    flat = any(last - first == 1 for first, last in sides)
    if abilities.get(BBOX_3D) or (flat and abilities.get(BBOX_2D)):
        yield _bbox(sides, predict=True)
        return
    _require(BBOX_2D, abilities, "boxes")
    for axis in (2, 1, 0):
        middle = sum(sides[axis]) // 2
        yield _bbox([[middle, middle + 1] if n == axis else side for n, side in enumerate(sides)], predict=axis == 0)


def _bbox(sides: list[list[int]], *, predict: bool) -> Call:
    arguments = {"bbox_coords": sides, "include_interaction": True, "run_prediction": predict}
    return Call(method="add_bbox_interaction", arguments=arguments)


def _drawn(method: str, drawn: Bools, corner: Sequence[int], *, include: bool) -> Call:
    """The call for drawn voxels, of which there is at least one, with a mask of their bounding box.

    Args:
        method: The session's method.
        drawn: Mask of a box of the image.
        corner: Lower corner of this box.
        include: False for voxels off the structure.
    """
    (region,) = ndimage.find_objects(drawn.astype(np.uint8))
    sides = [[int(side.start) + at, int(side.stop) + at] for side, at in zip(region, corner, strict=True)][::-1]
    image = np.ascontiguousarray(drawn[region].T.astype(np.uint8))
    name = "lasso_image" if method == "add_lasso_interaction" else "scribble_image"
    return Call(method=method, arguments={name: image, "include_interaction": include, "interaction_bbox": sides})


def _require(kind: str, abilities: Abilities, what: str) -> None:
    """Raise BadRequest if the network does not take this kind of prompt."""
    if not abilities.get(kind):
        names = ", ".join(name for name, able in abilities.items() if able)
        raise BadRequest(f"this nnInteractive model does not take {what}; it takes: {names}")
