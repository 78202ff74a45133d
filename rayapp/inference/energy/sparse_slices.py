"""From outlines on a few slices to a volume: the depth of each voxel inside the structure.

Between two outlined slices the signed distance to the outline is interpolated linearly (shape-based interpolation,
Raya and Udupa, 1990), part by part: parts that overlap belong together, also where one splits in two or two join;
parts that overlap none go to the nearest, if it is near, and end between the slices otherwise. Parts that belong
together are moved onto each other's centroids, since distances of outlines that lie apart would cancel.

Beyond the outermost slices each part of the outline shrinks like that of an ellipsoid that ends one gap between slices
further on, since annotators spread their slices over the structure. For a single slice, the ellipsoid is somewhat
taller than the outline is wide, as most organs are. Pure functions, thread-safe.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from rayapp.inference.arrays import Bools, Floats, Spacing

SINGLE_SLICE_REACH = 1.5
"""Extent of a structure known from a single slice beyond that slice, in radii of a disc of the same area."""
STEEPNESS = 2.0
"""Rate at which depth falls beyond the ellipsoid's end, relative to that towards it."""
MAX_PARTS = 32
"""Largest number of components in a slice that are treated separately; if there are more, they are noise and treated as
one."""
NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""A pixel and its eight neighbours."""


def signed_distance(mask: Bools, spacing: npt.ArrayLike) -> Floats:
    """Signed distance in mm to the outline of a non-empty mask, positive inside.

    Args:
        mask: The mask; everything around the array counts as outside.
        spacing: mm along each axis.
    """
    framed = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(framed, sampling=spacing)
    outside = ndimage.distance_transform_edt(~framed, sampling=spacing)
    return np.asarray((inside - outside)[(slice(1, -1),) * mask.ndim], dtype=np.float32)


def interpolated_depth(slices: Mapping[int, Bools], planes: int, spacing: Spacing) -> Floats:
    """Depth of each voxel inside the structure.

    Args:
        slices: Index along the last axis to the outlined slice's mask (I, J), none of them empty.
        planes: Number of slices in the volume.
        spacing: mm along the three axes.

    Returns:
        Depth in mm, (I, J, planes), negative outside.
    """
    indices = sorted(slices)
    field = np.empty((*slices[indices[0]].shape, planes), dtype=np.float32)
    for k in indices:
        field[..., k] = signed_distance(slices[k], spacing[:2])
    for before, after in itertools.pairwise(indices):
        if after > before + 1:
            _fill_between(field, before, after, slices, spacing)
    ends = ((indices[0], range(indices[0])), (indices[-1], range(indices[-1] + 1, planes)))
    for end, beyond in ends:
        if beyond:
            gap_mm = _gap_mm(indices, end, spacing)
            parts = [(signed_distance(part, spacing[:2]), part) for part in _parts(slices[end])]
            for k in beyond:
                away_mm = abs(k - end) * spacing[2]
                field[..., k] = _union(
                    depth - depth.max() * _depth_loss(away_mm / (gap_mm or _reach_mm(part, spacing)))
                    for depth, part in parts
                )
    return field


def _fill_between(field: Floats, before: int, after: int, slices: Mapping[int, Bools], spacing: Spacing) -> None:
    """Fill in the depth (I, J, planes) between two outlined slices, in place."""
    gap_mm = (after - before) * spacing[2]
    groups: list[tuple[Floats | None, Floats | None, npt.NDArray[np.float64]]] = []
    for first, second in _corresponding(_parts(slices[before]), _parts(slices[after]), gap_mm, spacing[:2]):
        start, end = (None if mask is None else signed_distance(mask, spacing[:2]) for mask in (first, second))
        shift = np.zeros(2) if first is None or second is None else _centroid(second) - _centroid(first)
        groups.append((start, end, shift))
    for k in range(before + 1, after):
        share = (k - before) / (after - before)
        field[..., k] = _union(_between(first, second, shift, share) for first, second, shift in groups)


def _between(first: Floats | None, second: Floats | None, shift: npt.NDArray[np.float64], share: float) -> Floats:
    """The depth of a part at a fraction of the distance between two slices; a part on one of them alone ends at the
    other.
    """
    if first is None or second is None:
        depth, relative = (first, share) if first is not None else (second, 1 - share)
        assert depth is not None
        shrunk: Floats = depth - depth.max() * np.float32(_depth_loss(relative))
        return shrunk
    return (1 - share) * _moved(first, share * shift) + share * _moved(second, (share - 1) * shift)


def _moved(depth: Floats, shift: npt.NDArray[np.float64]) -> Floats:
    """A depth moved by fractional voxels."""
    if not shift.any():
        return depth
    moved: Floats = ndimage.shift(depth, shift, order=1, mode="nearest")
    return moved


def _union(depths: Iterable[Floats]) -> Floats:
    """The depth inside any of several parts."""
    return functools.reduce(np.maximum, depths)


def _parts(mask: Bools) -> list[Bools]:
    """The connected parts of a slice's mask."""
    labels, count = ndimage.label(mask, NEIGHBOURS)
    return [mask] if count > MAX_PARTS else [labels == part for part in range(1, count + 1)]


def _corresponding(
    first: Sequence[Bools], second: Sequence[Bools], gap_mm: float, spacing: Spacing
) -> Iterator[tuple[Bools | None, Bools | None]]:
    """Assign the parts of one slice to those of another.

    Args:
        first: The parts of one slice.
        second: The parts of the other.
        gap_mm: Distance between the slices; parts that are nearer than this within the plane belong together.
        spacing: mm along the slices' axes.

    Returns:
        Pairs of unions of parts that belong together; None in place of a part without a counterpart.
    """
    away = [ndimage.distance_transform_edt(~part, sampling=spacing) for part in second]
    apart = np.array([[float(distance[part].min()) for distance in away] for part in first])
    linked = apart == 0
    near = apart <= gap_mm if linked.any() else np.full(apart.shape, True)
    for axis, nearest in ((1, apart.argmin(axis=1)), (0, apart.argmin(axis=0))):
        for index in np.flatnonzero(~linked.any(axis=axis)):
            pair = (index, nearest[index]) if axis == 1 else (nearest[index], index)
            linked[pair] = near[pair]
    count = len(first) + len(second)
    graph = np.zeros((count, count), dtype=bool)
    graph[: len(first), len(first) :] = linked
    groups, group_of = connected_components(graph, directed=False)
    for group in range(groups):
        members = [
            [part for part, number in zip(parts, numbers, strict=True) if number == group]
            for parts, numbers in ((first, group_of[: len(first)]), (second, group_of[len(first) :]))
        ]
        one, other = (np.logical_or.reduce(parts) if parts else None for parts in members)
        yield one, other


def _centroid(mask: Bools) -> npt.NDArray[np.float64]:
    return np.asarray(np.argwhere(mask).mean(axis=0))


def _gap_mm(indices: Sequence[int], end: int, spacing: Spacing) -> float:
    """Distance in mm from the first or the last of the outlined slices to the one next to it; 0 for a single slice."""
    if len(indices) == 1:
        return 0.0
    neighbour = indices[1] if end == indices[0] else indices[-2]
    return float(abs(neighbour - end) * spacing[2])


def _reach_mm(part: Bools, spacing: Spacing) -> float:
    """Expected distance in mm from a single slice to the end of a part on it."""
    area = np.count_nonzero(part) * spacing[0] * spacing[1]
    return float(SINGLE_SLICE_REACH * np.sqrt(area / np.pi))


def _depth_loss(relative: float) -> float:
    """Loss of depth beyond the last slice, as a share of its largest depth.

    Args:
        relative: Distance from the last slice, relative to the expected distance to the structure's end.
    """
    return 1 - float(np.sqrt(1 - relative * relative)) if relative < 1 else 1 + STEEPNESS * (relative - 1)
