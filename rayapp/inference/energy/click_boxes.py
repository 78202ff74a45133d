"""Boxes around clicks, within a bound on their voxels. Pure functions, thread-safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point

Corners = npt.NDArray[np.float64]
"""Inclusive lower and exclusive upper corner of a box in (fractional) source voxels, shape (2, 3)."""

MAX_VOXELS = 150_000
"""Largest number of voxels in a region."""


def grouped(points: Sequence[Point], scan: Scan, context_mm: float) -> list[list[Point]]:
    """Group clicks so that one region can contain each group with half of `context_mm` around it.

    Nearby clicks share a region: one region each, with all of their context, would be cut again and again in almost
    the same place.
    """
    groups: list[list[Point]] = []
    for point in sorted(points):
        for group in groups:
            if _voxels(_around([*group, point], context_mm / 2 / scan.spacing), scan) <= MAX_VOXELS:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def box_around(points: Sequence[Point], scan: Scan, context_mm: float) -> Corners:
    """A box around a group of clicks, with as much of `context_mm` around them as `MAX_VOXELS` allows."""
    while _voxels(box := _around(points, context_mm / scan.spacing), scan) > MAX_VOXELS:
        context_mm *= 0.9
    return box


def region_between(least: Corners, most: Corners, scan: Scan) -> Region:
    """The region of a box that contains `least`, and as much of `most` as `MAX_VOXELS` allows."""
    share = 1.0
    while _voxels(least + share * (most - least), scan) > MAX_VOXELS:
        share *= 0.9
        if share < 0.01:
            share = 0.0
    low, high = least + share * (most - least)
    return Region.around(np.floor(low), np.ceil(high), scan.shape, scan.spacing)


def union(boxes: Sequence[Corners]) -> Corners:
    """The smallest box that contains all `boxes`."""
    return np.stack([np.min([low for low, _ in boxes], axis=0), np.max([high for _, high in boxes], axis=0)])


def corners_of(region: Region) -> Corners:
    """The corners of a region."""
    return np.array([region.lower, region.upper], dtype=np.float64)


def points_within(points: Sequence[Point], region: Region) -> Iterator[Point]:
    """The points within a region whose blocks are single voxels, as indices of the region."""
    for point in points:
        if all(low <= index < high for index, low, high in zip(point, region.lower, region.upper, strict=True)):
            i, j, k = (index - low for index, low in zip(point, region.lower, strict=True))
            yield i, j, k


def _voxels(box: Corners, scan: Scan) -> int:
    """Number of the image's voxels in a box."""
    low, high = np.maximum(0, np.floor(box[0])), np.minimum(scan.shape, np.ceil(box[1]))
    return int(np.prod(high - low))


def _around(points: Sequence[Point], context: npt.NDArray[np.float64]) -> Corners:
    """The box around points with `context` voxels along each axis."""
    indices = np.array(points, dtype=np.float64)
    return np.stack([indices.min(axis=0) - context, indices.max(axis=0) + 1 + context])
