"""Closed curves as voxels: the parts of slices that curves drawn by an annotator enclose.

A curve is a polygon on one slice, in fractional voxel indices, in which whole numbers are voxel centres. A voxel is
enclosed if its centre lies inside the polygon or on it. Several curves on a slice follow the even-odd rule: an inner
curve is the border of a hole. Where curves run too close together to enclose any centre, they keep the voxels that they
run through. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Labels, Shape
from rayapp.inference.infer_task import CurvePoint

Slice = tuple[int, int]
"""An axis of the image, and the index along it of a slice across it."""

SAMPLES_PER_VOXEL = 8
"""Samples along a curve for each voxel that it passes, which find the voxels it runs through."""
NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""A pixel and its eight neighbours."""


def slice_of(curve: Sequence[CurvePoint]) -> Slice:
    """The slice that a curve was drawn on.

    It lies across the axis along which the curve's points differ least; of equals, one on a whole index, the last one.
    """
    points = np.asarray(curve, dtype=np.float64)
    spread, whole = np.ptp(points, axis=0), points[0] % 1 == 0
    axis = max(range(3), key=lambda axis: (-spread[axis], whole[axis], axis))
    return axis, int(np.rint(points[:, axis].mean()))


def enclosed(curves: Sequence[Sequence[CurvePoint]], shape: Shape) -> dict[Slice, Bools]:
    """The regions that closed curves enclose, by slice.

    Args:
        curves: Polygons, each on one slice, in fractional voxel indices.
        shape: Voxels of the image along i, j, k.

    Returns:
        For each slice with a curve the mask of the enclosed voxels, along the two other axes in the image's order.
    """
    polygons: dict[Slice, list[npt.NDArray[np.float64]]] = {}
    for curve in curves:
        where = slice_of(curve)
        polygons.setdefault(where, []).append(np.delete(np.asarray(curve, dtype=np.float64), where[0], axis=1))
    sizes = {axis: tuple(n for other, n in enumerate(shape) if other != axis) for axis, _ in polygons}
    return {where: _filled(group, sizes[where[0]]) for where, group in polygons.items()}


def plane_of(array: npt.NDArray[Any], where: Slice) -> npt.NDArray[Any]:
    """A view of one slice of an array (I, J, K), its two axes in the array's order."""
    axis, index = where
    return array[(slice(None),) * axis + (index,)]


def enforce_curves(labels: Labels, curves: Sequence[Sequence[CurvePoint]], value: int) -> None:
    """On each slice with a curve, make a structure exactly what the curves enclose.

    Args:
        labels: Label map (I, J, K); modified.
        curves: The structure's curves.
        value: The structure's label value; other values stay outside the curves.
    """
    i, j, k = labels.shape
    for where, inside in enclosed(curves, (i, j, k)).items():
        plane = plane_of(labels, where)
        plane[(plane == value) & ~inside] = 0
        plane[inside] = value


def _filled(polygons: Sequence[npt.NDArray[np.float64]], size: tuple[int, ...]) -> Bools:
    """The pixels that polygons (N, 2) enclose by the even-odd rule."""
    from skimage.measure import grid_points_in_poly  # slow to import

    inside, border, through = (np.zeros(size, dtype=bool) for _ in range(3))
    for polygon in polygons:
        low = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, size)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        # 1 inside, 2 and 3 on the border
        places = grid_points_in_poly(tuple(high - low), polygon - low, binarize=False)
        inside[box] ^= places == 1
        border[box] |= places > 1
        through[_pixels_along(polygon, size)] = True
    filled = inside | border
    thin = through & ~ndimage.binary_dilation(filled, NEIGHBOURS)
    return np.asarray(filled | (through & ndimage.binary_dilation(thin, NEIGHBOURS)), dtype=np.bool_)


def _pixels_along(polygon: npt.NDArray[np.float64], size: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
    """Indices of the pixels that a polygon's edges run through."""
    ends = np.roll(polygon, -1, axis=0)
    counts = np.ceil(np.abs(ends - polygon).max(axis=1) * SAMPLES_PER_VOXEL).astype(int) + 1
    edges = [np.linspace(a, b, count, endpoint=False) for a, b, count in zip(polygon, ends, counts, strict=True)]
    pixels = np.clip(np.rint(np.concatenate(edges)).astype(np.intp), 0, np.array(size) - 1)
    return pixels[:, 0], pixels[:, 1]
