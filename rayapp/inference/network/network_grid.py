"""From a source image to the network's grid, and from the network's answer to labels on the source's exact grid.

Frames: a *source* index (i, j, k) is the file's; the *coarse* grid has the source's axes and covers exactly its extent
with fewer or more voxels; the *network* grid is the coarse one turned to canonical RAS axes and padded behind its last
voxel to a size the network takes. Whatever has a number for each axis (spacing, limits, divisors) has it along R, A, S
of the network's grid, never along i, j, k. Voxels are aligned as volumes are, not corner to corner: along an axis of n
source and m coarse voxels, coarse = (source + 1/2) m/n - 1/2, so that nothing shifts by half a voxel.

Turning happens on the coarse grid, where it costs little, and interpolation is a small dense matrix per axis, applied
to the box of one structure at a time. Arrays in source frame are laid out i fastest, as files are.
Pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from rayapp.geometry import Orientation, spacing
from rayapp.imaging.volume import Affine
from rayapp.inference.infer_task import Point
from rayapp.inference.prompts.guidance import Position

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

MAX_AXIS = 384
"""Voxels a network grid may have along an axis, whatever spacing a header claims."""
PADDING = -2.0
"""Value of voxels outside the image; also the lowest a normalised voxel has."""
AIR_VARIES, TISSUE_VARIES = 0.20, 0.27
"""Standard deviation of an image's darker part, as a share of its distance from the brighter, up to which it is air
and from which it is tissue."""
SLAB = 16
"""Planes worked on at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class NetworkGrid:
    """How one source grid and its network grid lie on each other."""

    source: Shape
    coarse: Shape
    orientation: Orientation
    padded: Shape

    @classmethod
    def fit(
        cls,
        shape: Shape,
        affine: Affine,
        *,
        spacing_mm: float | Sequence[float],
        limit: Sequence[int] | None,
        divisor: int | Sequence[int],
    ) -> NetworkGrid:
        """A grid over the whole image, of voxels of `spacing_mm`, larger where `limit` (voxels) needs it.

        All three are along R, A, S: of an oblique or turned image, along the axis of it that lies nearest to each. One
        number stands for all axes. A spacing of 0 keeps the source's own voxels along its axis. Sizes are padded to
        multiples of `divisor`.
        """
        orientation = Orientation.of(affine)
        axes = list(orientation.axes)
        size, edges = np.array(shape)[axes], spacing(affine)[axes]
        step = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)
        wanted = np.where(step > 0, np.maximum(1, np.rint(size * edges / np.where(step > 0, step, 1))), size)
        turned = np.minimum(wanted, MAX_AXIS if limit is None else np.minimum(limit, MAX_AXIS)).astype(int)
        padded = -(-turned // np.asarray(divisor)) * np.asarray(divisor)
        coarse = turned[np.argsort(axes)]
        return cls(source=shape, coarse=_shape(coarse), orientation=orientation, padded=_shape(padded))

    @property
    def turned(self) -> Shape:
        """Voxels of the coarse grid along R, A, S, without padding."""
        return _shape(self.coarse[axis] for axis in self.orientation.axes)

    def positions(self, points: Iterable[Point]) -> list[Position]:
        """Where source voxels' centres lie on the network grid."""
        scale = np.array(self.coarse) / self.source
        coarse = (np.array(list(points), dtype=np.float64).reshape(-1, 3) + 0.5) * scale - 0.5
        turned = self.orientation.apply_points(coarse, self.coarse)
        return [(float(x), float(y), float(z)) for x, y, z in turned]

    def from_source(self, array: npt.NDArray[np.generic]) -> Floats:
        """Bring one channel (I, J, K) to the network's grid, shape `padded`, padded with NaN."""
        matrices = [_averaging(n, m) for n, m in zip(self.source, self.coarse, strict=True)]
        turned = self.orientation.apply(_resample(array, matrices))
        return np.pad(
            turned, [(0, p - n) for p, n in zip(self.padded, turned.shape, strict=True)], constant_values=np.nan
        )

    def labels_from_source(self, labels: npt.NDArray[Any]) -> Labels:
        """The label (I, J, K), up to 255, at the centre of each of the network's voxels; padded with 0."""
        nearest = [
            np.clip(np.rint((np.arange(m) + 0.5) * n / m - 0.5), 0, n - 1).astype(int)
            for n, m in zip(self.source, self.coarse, strict=True)
        ]
        turned = self.orientation.apply(labels[np.ix_(*nearest)])
        padding = [(0, p - n) for p, n in zip(self.padded, turned.shape, strict=True)]
        return np.pad(turned, padding).astype(np.uint8)

    def to_source_axes(self, field: Floats) -> Floats:
        """Undo padding and turning of one field: a (k, j, i) view of it on the coarse grid."""
        a, b, c = self.turned
        undone: Floats = self.orientation.undo(field[:a, :b, :c]).transpose(2, 1, 0)
        return undone


def normalise(image: Floats) -> Floats:
    """Scale one channel so that most of the body lies in -1 to 1, for CT and MR alike; clipped to -2 to 2.

    The body is what is brighter than the image's mean (air, and the noise around a patient in MR, are darker); its
    5th and 95th percentiles become -1 and 1. In an image cropped to within the body what is darker is tissue too, and
    is known by varying as tissue does: then the percentiles are the whole image's, and between the two cases they
    change over without a jump. NaN (padding) becomes `PADDING`.
    """
    inside = image[~np.isnan(image)]
    mean = inside.mean() if inside.size else np.float32(0)
    bright, dark = inside[inside > mean], inside[inside <= mean]
    low, high = np.percentile(bright, (5, 95)) if bright.size else (0.0, 0.0)
    tissue = _tissue(dark, bright)
    if tissue:
        low, high = (1 - tissue) * np.array((low, high)) + tissue * np.percentile(inside, (5, 95))
    scale = 2 / max(high - low, 1e-6)
    scaled = (image - np.float32(low)) * np.float32(scale) - 1
    clipped: Floats = np.nan_to_num(np.clip(scaled, PADDING, -PADDING), nan=PADDING)
    return clipped


def _tissue(dark: Floats, bright: Floats) -> float:
    """How much the darker voxels look like tissue: from 0, they hardly vary beside their distance from the brighter
    ones (air does so by up to 0.19 in CT and MR of torsos), to 1 (from 0.28 in MR of a brain's hippocampus)."""
    if not bright.size:
        return 0.0
    spread = float(dark.std() / (bright.mean() - dark.mean()))
    return min(1.0, max(0.0, (spread - AIR_VARIES) / (TISSUE_VARIES - AIR_VARIES)))


@torch.inference_mode()
def margins_of(logits: Tensor) -> Floats:
    """By how much each structure leads (or trails) its best rival: (1 + L, …) logits to (L, …) margins.

    Interpolating margins instead of logits needs one field per structure, in that structure's box only. Where one
    structure leads, the others trail by at least as much, so that interpolated margins are positive for one at most.
    """
    fields = logits.clone(memory_format=torch.contiguous_format)  # channels first, and ours to write to
    best, second, spare = fields[0].clone(), torch.full_like(fields[0], -torch.inf), torch.empty_like(fields[0])
    for field in fields[1:]:
        torch.minimum(best, field, out=spare)
        torch.maximum(second, spare, out=second)
        torch.maximum(best, field, out=best)
    for field in fields[1:]:  # what leads is above the second best, what trails is not
        torch.sub(field, second, out=spare)
        field.sub_(best).add_(spare.clamp_(min=0))
    margins: Floats = fields[1:].cpu().numpy()
    return margins


def keep_largest(labels: Labels) -> Labels:
    """Labels without each structure's smaller connected parts (voxels that touch by faces)."""
    kept = labels.copy(order="K")
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == value)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            kept[box][(parts > 0) & (parts != largest)] = 0
    return kept


def restore(margins: Floats, grid: NetworkGrid, *, roi: tuple[Point, Point] | None = None) -> Labels:
    """Labels on the source's grid: structure n where its interpolated margin is positive.

    Args:
        margins: (L, *grid.padded), in the network's frame.
        roi: lower (inclusive) and upper (exclusive) corner, source indices, outside which all is background.

    Returns:
        Shape (I, J, K), values 0 to L, i fastest in memory.
    """
    coarse, source = grid.coarse[::-1], grid.source[::-1]
    low, high = ((0, 0, 0), grid.source) if roi is None else roi
    labels = np.zeros(source, dtype=np.uint8)
    for value, (margin, extent) in enumerate(zip(margins, _extents(margins, grid), strict=True), start=1):
        if extent is None:
            continue
        axes = [
            _interpolation(n, m, reach, (first, last))
            for n, m, reach, first, last in zip(source, coarse, extent[::-1], low[::-1], high[::-1], strict=True)
        ]
        if any(axis.fine.start >= axis.fine.stop for axis in axes):
            continue
        field = grid.to_source_axes(margin)
        block = torch.from_numpy(np.ascontiguousarray(field[tuple(axis.coarse for axis in axes)]))
        k, j, i = (torch.from_numpy(axis.weights) for axis in axes)
        planes = (j @ (block @ i.T)).flatten(1)
        target = labels[tuple(axis.fine for axis in axes)]
        for start in range(0, len(k), SLAB):
            part = target[start : start + SLAB]
            ahead = np.greater((k[start : start + SLAB] @ planes).numpy(), 0).reshape(part.shape)
            np.maximum(part, ahead.view(np.uint8) * np.uint8(value), out=part)
    return labels.transpose(2, 1, 0)


def restore_levels(field: Floats, grid: NetworkGrid) -> Labels:
    """A field of values from 0 to 1 on the source's grid, as levels: 255 for 1.

    Args:
        field: (R, A, S) of `grid.padded`, in the network's frame.

    Returns:
        Shape (I, J, K), i fastest in memory; linear between the network's voxels.
    """
    axes = [
        torch.from_numpy(_interpolation(n, m, (0, m), (0, n)).weights)
        for n, m in zip(grid.source[::-1], grid.coarse[::-1], strict=True)
    ]
    k, j, i = axes
    block = torch.from_numpy(np.ascontiguousarray(grid.to_source_axes(field)))
    planes = (j @ (block @ i.T)).flatten(1)
    levels = np.empty(grid.source[::-1], dtype=np.uint8)
    for start in range(0, len(k), SLAB):
        part = levels[start : start + SLAB]
        values = (k[start : start + SLAB] @ planes).numpy().reshape(part.shape)
        part[...] = np.rint(np.clip(values, 0, 1) * 255)
    return levels.transpose(2, 1, 0)


def within(labels: Labels, roi: tuple[Point, Point] | None) -> Labels:
    """The labels themselves, background outside the box from `roi`'s lower (inclusive) to its upper corner."""
    if roi is not None:
        for axis, (first, last) in enumerate(zip(*roi, strict=True)):
            labels.swapaxes(0, axis)[:first] = 0
            labels.swapaxes(0, axis)[last:] = 0
    return labels


@dataclass(frozen=True)
class Interpolation:
    """Along one axis: the source voxels to fill, the coarse voxels they lie between, and the weights (fine, coarse)."""

    fine: slice
    coarse: slice
    weights: Floats


def _interpolation(n: int, m: int, reach: tuple[int, int], limits: tuple[int, int]) -> Interpolation:
    """From coarse voxels `reach` (first, end) of m, and their neighbours, to the source voxels of n between them."""
    first, end = reach
    at = (np.arange(n) + 0.5) * m / n - 0.5
    start = max(limits[0], int(np.searchsorted(at, first - 1, side="right")))
    stop = max(start, min(limits[1], int(np.searchsorted(at, end))))
    near = slice(max(0, first - 1), min(m, end + 1))
    distance = np.abs(np.clip(at[start:stop, None], 0, m - 1) - np.arange(near.start, near.stop))
    return Interpolation(slice(start, stop), near, np.maximum(0, 1 - distance).astype(np.float32))


def _extents(margins: Floats, grid: NetworkGrid) -> list[list[tuple[int, int]] | None]:
    """For each structure, along i, j, k of the coarse grid, a range of voxels with all those that it leads on."""
    a, b, c = grid.turned
    # With the padding, whose voxels can only widen an extent: a view of less is slow.
    leads = margins > 0
    across = np.logical_or.reduce(leads, axis=1)
    profiles = (np.any(leads, axis=(2, 3))[:, :a], np.any(across, axis=2)[:, :b], np.any(across, axis=1)[:, :c])
    extents: list[list[tuple[int, int]] | None] = []
    for along in zip(*profiles, strict=True):
        if not all(hits.any() for hits in along):
            extents.append(None)
            continue
        corners = np.array([[int(np.flatnonzero(hits)[end]) for hits in along] for end in (0, -1)])
        ends = np.sort(grid.orientation.undo_points(corners, grid.coarse), axis=0)
        extents.append([(int(first), int(last) + 1) for first, last in ends.T])
    return extents


def _averaging(n: int, m: int) -> Floats:
    """Weights (m, n) that bring n samples to m: linear, widened to the coarse step so that nothing aliases."""
    step = n / m
    centre = (np.arange(m) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.clip(centre, 0, n - 1)[:, None] - np.arange(n)) / max(1.0, step))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _resample(array: npt.NDArray[Any], matrices: Sequence[Floats]) -> Floats:
    """Apply one matrix along each axis, a slab at a time, so that no float copy of the whole image is made."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    view = array.transpose(order)
    slow, middle, fast = (torch.from_numpy(matrices[axis]) for axis in order)
    total = torch.zeros(len(slow), len(middle) * len(fast))
    for start in range(0, len(view), SLAB):
        slab = view[start : start + SLAB].astype(np.float32)
        if array.dtype.kind == "f":
            slab = np.nan_to_num(slab, copy=False, nan=0, posinf=0, neginf=0)
        part = middle @ (torch.from_numpy(np.ascontiguousarray(slab)) @ fast.T)
        total += slow[:, start : start + SLAB] @ part.flatten(1)
    result: Floats = total.view(len(slow), len(middle), len(fast)).numpy().transpose(np.argsort(order))
    return result


def _shape(sizes: Iterable[int]) -> Shape:
    i, j, k = (int(n) for n in sizes)
    return i, j, k
