"""Restoration: from a network's answer to a label map on exactly the source grid.

A voxel of the source gets the class of the largest logit there, interpolated linearly between the network's voxels. So
structures that touch in the network's answer touch on the source grid, too. What is interpolated is each structure's
log-odds over background, since subtracting the same field from all logits changes no comparison: that takes one field
per structure, in the box where it is positive only. Interpolation takes two samples along each axis in turn, for a slab
of source planes at a time; beside the label map only a few such slabs of floats are held. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from rayapp.inference.arrays import Box, Floats, Labels, contiguous
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import SLAB, NetworkGrid


@torch.inference_mode()
def log_odds(logits: Tensor) -> Floats:
    """Log-odds of each structure over background.

    Args:
        logits: Shape (1 + L, …), background first; overwritten.

    Returns:
        Shape (L, …): the logit of each structure minus that of background.
    """
    fields: Floats = logits[1:].sub_(logits[:1]).cpu().contiguous().numpy()
    return fields


def lead(fields: Floats, value: int) -> Floats:
    """Log-odds of one structure over the likeliest of all other classes.

    Args:
        fields: Log-odds over background, (L, …).
        value: The structure's label value.

    Returns:
        Shape (…), positive where the structure is.
    """
    rival: Floats = np.zeros_like(fields[0])
    for other, field in enumerate(fields, start=1):
        if other != value:
            np.maximum(rival, field, out=rival)
    np.subtract(fields[value - 1], rival, out=rival)
    return rival


def labels_of(fields: Floats) -> Labels:
    """Label map (…) of log-odds over background (L, …): the structure with the largest if that is positive, else 0."""
    labels = np.zeros(fields.shape[1:], dtype=np.uint8)
    best = np.zeros(fields.shape[1:], dtype=np.float32)
    for value, field in enumerate(fields, start=1):
        labels[field > best] = value
        np.maximum(best, field, out=best)
    return labels


def restore(fields: Floats, grid: NetworkGrid, *, roi: tuple[Point, Point] | None = None) -> Labels:
    """The label map of the largest interpolated logits.

    Args:
        fields: Log-odds over background on the network grid, (L, *grid.padded).
        grid: Mapping from the source grid to the network grid.
        roi: Inclusive lower and exclusive upper corner in source indices, outside which all is background.

    Returns:
        Label map (I, J, K), values 0 to L, i fastest in memory.
    """
    parts = [
        _Part(value, extent, grid.to_source_axes(field).__getitem__)
        for value, (field, extent) in enumerate(zip(fields, _positive_extents(fields, grid), strict=True), start=1)
        if extent is not None
    ]
    return _restored(parts, grid, roi)


def restore_labels(labels: Labels, grid: NetworkGrid, *, roi: tuple[Point, Point] | None = None) -> Labels:
    """The label map with the largest interpolated share of each voxel, of a label map on the network grid.

    Args:
        labels: Label map on the network grid, shape `grid.padded`.
        grid: Mapping from the source grid to the network grid.
        roi: As of `restore`.

    Returns:
        Label map (I, J, K), i fastest in memory.
    """
    source = grid.to_source_axes(labels)
    parts = [
        _Part(value, [(side.start, side.stop) for side in reversed(box)], _share_over_background(source, value))
        for value, box in enumerate(ndimage.find_objects(source), start=1)
        if box is not None
    ]
    return _restored(parts, grid, roi)


def restore_levels(field: Floats, grid: NetworkGrid) -> Labels:
    """Interpolate a field of values from 0 to 1 linearly onto the source grid, quantised to 8 bits.

    Args:
        field: Values on the network grid, shape `grid.padded`.
        grid: Mapping from the source grid to the network grid.

    Returns:
        Shape (I, J, K), 255 for 1, i fastest in memory.
    """
    source, resampled = grid.source[::-1], grid.resampled[::-1]
    block = grid.to_source_axes(field)
    levels = np.empty(source, dtype=np.uint8)
    for start in range(0, source[0], SLAB):
        limits = ((start, min(start + SLAB, source[0])), (0, source[1]), (0, source[2]))
        axes = [_interpolation(n, m, (0, m), limit) for n, m, limit in zip(source, resampled, limits, strict=True)]
        values = _interpolated(block[_box(axis.resampled for axis in axes)], axes)
        levels[start : start + SLAB] = np.rint(np.clip(values, 0, 1) * 255)
    return levels.transpose(2, 1, 0)


def keep_largest_component(labels: Labels, kept_points: Sequence[Point] = ()) -> Labels:
    """A label map with only the largest connected component of each structure, and those that hold a point.

    Args:
        labels: Label map (I, J, K).
        kept_points: Voxels, such as clicks, whose components stay whatever their size.

    Returns:
        A new label map. Voxels that share a face, an edge or a corner are connected (26-connectivity).
    """
    kept = labels.copy(order="K")
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        components, count = ndimage.label(labels[box] == value, np.ones((3, 3, 3)))
        if count > 1:
            corner = [side.start for side in box]
            held = [tuple(np.subtract(point, corner)) for point in kept_points if labels[point] == value]
            staying = np.zeros(count + 1, dtype=bool)
            staying[[1 + int(np.argmax(np.bincount(components.ravel())[1:])), *(components[at] for at in held)]] = True
            staying[0] = True
            kept[box][~staying[components]] = 0
    return kept


Extent = Sequence[tuple[int, int]]
"""First and end (exclusive) along i, j, k."""


@dataclass(frozen=True)
class _Part:
    """One structure's field on the resampled grid.

    Attributes:
        value: The structure's label value.
        extent: The resampled voxels where the field is positive.
        block: The field (k, j, i) within a box (k, j, i) of the resampled grid.
    """

    value: int
    extent: Extent
    block: Callable[[Box], Floats]


def _share_over_background(labels: Labels, value: int) -> Callable[[Box], Floats]:
    """The difference of a structure's and the background's one-hot fields, within boxes of a label map."""

    def block(box: Box) -> Floats:
        part = labels[box]
        share: Floats = (part == value).astype(np.float32) - (part == 0)
        return share

    return block


def _restored(parts: Iterable[_Part], grid: NetworkGrid, roi: tuple[Point, Point] | None) -> Labels:
    """The label map (I, J, K) of the structures with the largest interpolated fields, where these are positive."""
    source, resampled = grid.source[::-1], grid.resampled[::-1]
    low, high = ((0, 0, 0), grid.source) if roi is None else roi
    labels = np.zeros(source, dtype=np.uint8)
    sides = [(part, _across(part, grid, low, high)) for part in parts]
    sides = [(part, across) for part, across in sides if all(axis.source.start < axis.source.stop for axis in across)]
    largest = np.empty((SLAB, *source[1:]), dtype=np.float32)
    for start in range(low[2], high[2], SLAB):
        stop = min(start + SLAB, high[2])
        slab, best = labels[start:stop], largest[: stop - start]
        best.fill(0)
        for part, across in sides:
            along = _interpolation(source[0], resampled[0], part.extent[2], (start, stop))
            if along.source.start >= along.source.stop:
                continue
            axes = [along, *across]
            field = _interpolated(part.block(_box(axis.resampled for axis in axes)), axes)
            within = (slice(along.source.start - start, along.source.stop - start), *(axis.source for axis in across))
            np.copyto(slab[within], np.uint8(part.value), where=np.greater(field, best[within]))
            if part is not sides[-1][0]:
                np.maximum(best[within], field, out=best[within])
    return labels.transpose(2, 1, 0)


def _across(part: _Part, grid: NetworkGrid, low: Point, high: Point) -> list[Interpolation]:
    """Interpolation of a part along j and i, which is the same in all slabs."""
    return [
        _interpolation(grid.source[axis], grid.resampled[axis], part.extent[axis], (low[axis], high[axis]))
        for axis in (1, 0)
    ]


def _box(sides: Iterable[slice]) -> Box:
    k, j, i = sides
    return k, j, i


@dataclass(frozen=True)
class Interpolation:
    """Linear interpolation along one axis.

    Attributes:
        source: Source voxels to compute.
        resampled: Resampled voxels that they depend on.
        first: For each of the source voxels the first of the two resampled voxels that it lies between, counted from
            `resampled.start`.
        share: Weight of the second of these two.
    """

    source: slice
    resampled: slice
    first: npt.NDArray[np.intp]
    share: Floats

    def apply(self, block: Tensor, axis: int) -> Tensor:
        """Interpolate a block of the resampled voxels along an axis."""
        first = torch.from_numpy(self.first)
        second = torch.clamp(first + 1, max=block.shape[axis] - 1)
        share = torch.from_numpy(self.share).view(-1, *[1] * (block.ndim - axis - 1))
        return torch.lerp(block.index_select(axis, first), block.index_select(axis, second), share)

    def matrix(self) -> Tensor:
        """The weight (source voxels, resampled voxels) of each resampled voxel in each of the source."""
        length = self.resampled.stop - self.resampled.start
        weights = np.zeros((len(self.first), length), dtype=np.float32)
        rows = np.arange(len(self.first))
        weights[rows, np.minimum(self.first + 1, length - 1)] = self.share
        weights[rows, self.first] += 1 - self.share
        return torch.from_numpy(weights)


def _interpolation(n: int, m: int, extent: tuple[int, int], limits: tuple[int, int]) -> Interpolation:
    """Interpolation of the source voxels on which an extent of the resampled grid has an influence.

    Args:
        n: Source voxels along the axis.
        m: Resampled voxels along the axis.
        extent: First and end (exclusive) of the resampled voxels of interest.
        limits: First and end (exclusive) of the source voxels that may be computed.
    """
    first, end = extent
    positions = _positions(n, m)
    start = max(limits[0], int(np.searchsorted(positions, first - 1, side="right")))
    stop = max(start, min(limits[1], int(np.searchsorted(positions, end))))
    between = np.clip(positions[start:stop], 0, m - 1)
    below = np.floor(between).astype(np.intp)
    support = slice(int(below[0]), min(m, int(below[-1]) + 2)) if stop > start else slice(0)
    return Interpolation(slice(start, stop), support, below - support.start, (between - below).astype(np.float32))


@lru_cache(maxsize=64)
def _positions(n: int, m: int) -> npt.NDArray[np.float64]:
    """Fractional indices of n source voxels among m resampled ones along the same side."""
    return (np.arange(n) + 0.5) * m / n - 0.5


def _interpolated(block: Floats, axes: Sequence[Interpolation]) -> Floats:
    """Interpolate a block of resampled voxels along k, j, i at the source voxels.

    Voxels along i and j are few at this point and are picked; along k, where most of the work is, planes are combined
    by a matrix product, which reads and writes each once.
    """
    part = torch.from_numpy(contiguous(block))
    for axis in (2, 1):
        part = axes[axis].apply(part, axis)
    mixed = axes[0].matrix() @ part.flatten(1)
    field: Floats = mixed.view(-1, *part.shape[1:]).numpy()
    return field


def _positive_extents(fields: Floats, grid: NetworkGrid) -> list[Extent | None]:
    """For each structure, first and end along i, j, k of the resampled voxels with positive fields; None if none."""
    a, b, c = grid.canonical
    # Padding is included, since slicing it off would be slow; its voxels can only widen an extent.
    positive = fields > 0
    collapsed = np.logical_or.reduce(positive, axis=1)
    profiles = (
        np.any(positive, axis=(2, 3))[:, :a],
        np.any(collapsed, axis=2)[:, :b],
        np.any(collapsed, axis=1)[:, :c],
    )
    extents: list[Extent | None] = []
    for along_axes in zip(*profiles, strict=True):
        if not all(profile.any() for profile in along_axes):
            extents.append(None)
            continue
        corners = np.array([[int(np.flatnonzero(profile)[end]) for profile in along_axes] for end in (0, -1)])
        ends = np.sort(grid.orientation.undo_points(corners, grid.resampled), axis=0)
        extents.append([(int(first), int(last) + 1) for first, last in ends.T])
    return extents
