"""Restoration: from a network's logits to a label map on exactly the source grid.

Interpolation multiplies by a small dense matrix along each axis, within the box of one structure at a time. Pure
functions, thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from rayapp.inference.arrays import Floats, Labels
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import SLAB, NetworkGrid


@torch.inference_mode()
def log_odds_margins(logits: Tensor) -> Floats:
    """Log-odds margin of each structure over the runner-up class.

    Margins are interpolated instead of logits, since that takes one field per structure, in the structure's box only.
    Where one structure's margin is positive, the others' are at most its negative; so of interpolated margins at most
    one is positive.

    Args:
        logits: Shape (1 + L, …), background first.

    Returns:
        Shape (L, …): the logit of each structure minus the largest of all other classes.
    """
    fields = logits.clone(memory_format=torch.contiguous_format)  # channels first, and a copy to write to
    best, second, buffer = fields[0].clone(), torch.full_like(fields[0], -torch.inf), torch.empty_like(fields[0])
    for field in fields[1:]:
        torch.minimum(best, field, out=buffer)
        torch.maximum(second, buffer, out=second)
        torch.maximum(best, field, out=best)
    for field in fields[1:]:  # the best class is compared with the second best, all others with the best
        torch.sub(field, second, out=buffer)
        field.sub_(best).add_(buffer.clamp_(min=0))
    margins: Floats = fields[1:].cpu().numpy()
    return margins


def restore(margins: Floats, grid: NetworkGrid, *, roi: tuple[Point, Point] | None = None) -> Labels:
    """Interpolate margins onto the source grid; a voxel belongs to the structure whose margin is positive there.

    Args:
        margins: Log-odds margins on the network grid, (L, *grid.padded).
        grid: Mapping from the source grid to the network grid.
        roi: Inclusive lower and exclusive upper corner in source indices, outside which all is background.

    Returns:
        Label map (I, J, K), values 0 to L, i fastest in memory.
    """
    resampled, source = grid.resampled[::-1], grid.source[::-1]
    low, high = ((0, 0, 0), grid.source) if roi is None else roi
    labels = np.zeros(source, dtype=np.uint8)
    for value, (margin, extent) in enumerate(zip(margins, _positive_extents(margins, grid), strict=True), start=1):
        if extent is None:
            continue
        axes = [
            _interpolation(n, m, ends, (first, last))
            for n, m, ends, first, last in zip(source, resampled, extent[::-1], low[::-1], high[::-1], strict=True)
        ]
        if any(axis.source.start >= axis.source.stop for axis in axes):
            continue
        field = grid.to_source_axes(margin)
        block = torch.from_numpy(np.ascontiguousarray(field[tuple(axis.resampled for axis in axes)]))
        k, j, i = (torch.from_numpy(axis.weights) for axis in axes)
        planes = (j @ (block @ i.T)).flatten(1)
        target = labels[tuple(axis.source for axis in axes)]
        for start in range(0, len(k), SLAB):
            slab = target[start : start + SLAB]
            positive = np.greater((k[start : start + SLAB] @ planes).numpy(), 0).reshape(slab.shape)
            np.maximum(slab, positive.view(np.uint8) * np.uint8(value), out=slab)
    return labels.transpose(2, 1, 0)


def restore_levels(field: Floats, grid: NetworkGrid) -> Labels:
    """Interpolate a field of values from 0 to 1 linearly onto the source grid, quantised to 8 bits.

    Args:
        field: Values on the network grid, shape `grid.padded`.
        grid: Mapping from the source grid to the network grid.

    Returns:
        Shape (I, J, K), 255 for 1, i fastest in memory.
    """
    axes = [
        torch.from_numpy(_interpolation(n, m, (0, m), (0, n)).weights)
        for n, m in zip(grid.source[::-1], grid.resampled[::-1], strict=True)
    ]
    k, j, i = axes
    block = torch.from_numpy(np.ascontiguousarray(grid.to_source_axes(field)))
    planes = (j @ (block @ i.T)).flatten(1)
    levels = np.empty(grid.source[::-1], dtype=np.uint8)
    for start in range(0, len(k), SLAB):
        slab = levels[start : start + SLAB]
        values = (k[start : start + SLAB] @ planes).numpy().reshape(slab.shape)
        slab[...] = np.rint(np.clip(values, 0, 1) * 255)
    return levels.transpose(2, 1, 0)


def keep_largest_component(labels: Labels) -> Labels:
    """A label map with only the largest connected component (6-connectivity) of each structure."""
    kept = labels.copy(order="K")
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        components, count = ndimage.label(labels[box] == value)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            kept[box][(components > 0) & (components != largest)] = 0
    return kept


def clear_outside(labels: Labels, roi: tuple[Point, Point] | None) -> Labels:
    """Set voxels outside a box to background, in place.

    Args:
        labels: Label map (I, J, K); modified.
        roi: Inclusive lower and exclusive upper corner; None changes nothing.

    Returns:
        `labels` itself.
    """
    if roi is not None:
        for axis, (first, last) in enumerate(zip(*roi, strict=True)):
            labels.swapaxes(0, axis)[:first] = 0
            labels.swapaxes(0, axis)[last:] = 0
    return labels


@dataclass(frozen=True)
class Interpolation:
    """Linear interpolation along one axis.

    Attributes:
        source: Source voxels to compute.
        resampled: Resampled voxels that they depend on.
        weights: Matrix of shape (source voxels, resampled voxels).
    """

    source: slice
    resampled: slice
    weights: Floats


def _interpolation(n: int, m: int, extent: tuple[int, int], limits: tuple[int, int]) -> Interpolation:
    """Interpolation of the source voxels on which an extent of the resampled grid has an influence.

    Args:
        n: Source voxels along the axis.
        m: Resampled voxels along the axis.
        extent: First and end (exclusive) of the resampled voxels of interest.
        limits: First and end (exclusive) of the source voxels that may be computed.
    """
    first, end = extent
    positions = (np.arange(n) + 0.5) * m / n - 0.5
    start = max(limits[0], int(np.searchsorted(positions, first - 1, side="right")))
    stop = max(start, min(limits[1], int(np.searchsorted(positions, end))))
    support = slice(max(0, first - 1), min(m, end + 1))
    distance = np.abs(np.clip(positions[start:stop, None], 0, m - 1) - np.arange(support.start, support.stop))
    return Interpolation(slice(start, stop), support, np.maximum(0, 1 - distance).astype(np.float32))


def _positive_extents(margins: Floats, grid: NetworkGrid) -> list[list[tuple[int, int]] | None]:
    """For each structure, first and end along i, j, k of the resampled voxels with positive margins; None if none."""
    a, b, c = grid.canonical
    # Padding is included, since slicing it off would be slow; its voxels can only widen an extent.
    positive = margins > 0
    collapsed = np.logical_or.reduce(positive, axis=1)
    profiles = (
        np.any(positive, axis=(2, 3))[:, :a],
        np.any(collapsed, axis=2)[:, :b],
        np.any(collapsed, axis=1)[:, :c],
    )
    extents: list[list[tuple[int, int]] | None] = []
    for along_axes in zip(*profiles, strict=True):
        if not all(profile.any() for profile in along_axes):
            extents.append(None)
            continue
        corners = np.array([[int(np.flatnonzero(profile)[end]) for profile in along_axes] for end in (0, -1)])
        ends = np.sort(grid.orientation.undo_points(corners, grid.resampled), axis=0)
        extents.append([(int(first), int(last) + 1) for first, last in ends.T])
    return extents
