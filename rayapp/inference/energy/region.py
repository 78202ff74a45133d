"""The region of an image that is segmented: a box around the marks, block-averaged where it would be too large.

Cost follows from the structure's size, not from the image's. Pure functions, thread-safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.arrays import Bools, Box, Floats, Labels, Shape, Spacing
from rayapp.inference.energy.sparse_slices import signed_distance
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import least_finite
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

MAX_VOXELS = 300_000
"""Largest number of blocks in a region."""
TIE = 1e-4
"""Difference in voxels below which two depths count as equal, as on the two sides of a symmetric mask."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box of source voxels, divided into blocks.

    Attributes:
        lower: Inclusive lower corner in source voxels.
        upper: Exclusive upper corner in source voxels.
        steps: Source voxels per block along i, j, k; blocks at the upper end may be smaller.
    """

    lower: Point
    upper: Point
    steps: Point

    @classmethod
    def around(
        cls,
        lower: npt.ArrayLike,
        upper: npt.ArrayLike,
        shape: Shape,
        spacing: Spacing,
        *,
        max_voxels: int = MAX_VOXELS,
    ) -> Region:
        """A region in blocks as small as possible.

        Args:
            lower: Inclusive lower corner; may lie outside the image, to which the box is clipped.
            upper: Exclusive upper corner, likewise.
            shape: Voxels of the image along i, j, k.
            spacing: mm along i, j, k; blocks are kept as isotropic as possible.
            max_voxels: Largest number of blocks.
        """
        low = np.maximum(0, np.asarray(lower)).astype(int)
        high = np.minimum(shape, np.asarray(upper)).astype(int)
        steps = np.ones(3, dtype=int)
        while np.prod(-(-(high - low) // steps)) > max_voxels:
            steps[int(np.argmin(spacing * steps))] += 1
        return cls(lower=_triple(low), upper=_triple(high), steps=_triple(steps))

    @property
    def box(self) -> Box:
        """The region in the source, as an index."""
        i, j, k = (slice(a, b) for a, b in zip(self.lower, self.upper, strict=True))
        return i, j, k

    @property
    def shape(self) -> Shape:
        """Blocks along i, j, k."""
        return _triple([-(-(b - a) // n) for a, b, n in zip(self.lower, self.upper, self.steps, strict=True)])

    def image(self, array: npt.NDArray[Any]) -> Floats:
        """Block means of one channel (I, J, K), computed plane by plane without a float copy of the whole box."""
        part = array[self.box]
        if self.steps == (1, 1, 1):
            return _finite(part, array)
        means = np.empty(self.shape, dtype=np.float32)
        for k in range(self.shape[2]):
            slab = _finite(part[:, :, k * self.steps[2] : (k + 1) * self.steps[2]], array).mean(axis=2)
            means[:, :, k] = _block_means(_block_means(slab, 0, self.steps[0]), 1, self.steps[1])
        return means

    def marks(self, marks: SparseLabels) -> Marks:
        """Each block's majority among its marked voxels; a tie is foreground, and unmarked blocks are 0."""
        if self.steps == (1, 1, 1):
            return marks.within(self.lower, self.upper)
        on, off = (self._counts(marks, mark) for mark in (FOREGROUND, BACKGROUND))
        return np.where(on + off > 0, np.where(on >= off, FOREGROUND, BACKGROUND), 0).astype(np.uint8)

    def _counts(self, marks: SparseLabels, mark: int) -> npt.NDArray[np.intp]:
        """The number of voxels in each block that have a mark."""
        low, high = np.maximum(self.lower, marks.lower), np.minimum(self.upper, marks.upper)
        high = np.maximum(low, high)
        counts = np.zeros(self.shape, dtype=np.intp)
        if (low < high).all():
            part = marks.view(low, high)
            first, last = ((at - self.lower) // self.steps for at in (low, high - 1))
            i, j, k = (
                np.maximum(np.arange(a, b + 1) * step - (at - lower), 0)
                for a, b, step, at, lower in zip(first, last, self.steps, low, self.lower, strict=True)
            )
            within = counts[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
            for plane, (start, stop) in enumerate(itertools.pairwise([*k, part.shape[2]])):
                slab = (part[:, :, start:stop] == mark).sum(axis=2, dtype=np.int32)
                within[:, :, plane] = np.add.reduceat(np.add.reduceat(slab, i, axis=0), j, axis=1)
        if mark == marks.beyond:
            whole, common = (
                [_lengths(self.lower[n], self.upper[n], self.steps[n], *ends[n]) for n in range(3)]
                for ends in (list(zip(self.lower, self.upper, strict=True)), list(zip(low, high, strict=True)))
            )
            counts = counts + _product(whole) - _product(common)
        return counts

    def restore(self, mask: Bools, labels: Labels) -> None:
        """Write a mask of the region's blocks into a label map, with a smooth outline.

        Args:
            mask: Mask of shape `shape`.
            labels: Label map (I, J, K) of the source; set to 1 within the mask.
        """
        if not mask.any():
            return
        target = labels[self.box]
        if self.steps == (1, 1, 1):
            target[mask] = 1
            return
        extent = ndimage.find_objects(mask.view(np.uint8))[0]
        near = tuple(slice(max(0, s.start - 2), min(n, s.stop + 2)) for s, n in zip(extent, self.shape, strict=True))
        fine = tuple(
            slice(s.start * step, min(s.stop * step, n))
            for s, step, n in zip(near, self.steps, target.shape, strict=True)
        )
        depth, target = signed_distance(mask[near], self.steps), target[fine]
        # Interpolation rounds corners off, so the threshold is the one at which the mask keeps its volume.
        size = min(target.size, int(np.count_nonzero(mask)) * int(np.prod(self.steps)))
        count, doubtful, least = 0, [], -float(np.linalg.norm(self.steps))
        for _, field in self._interpolated(depth, target.shape):
            count += int(np.count_nonzero(field >= 0))
            doubtful.append(field[(field < 0) & (field > least)])
        rest, wanted = np.concatenate(doubtful), size - count
        threshold = 0.0
        if wanted > 0 and rest.size:
            threshold = float(np.partition(rest, -min(wanted, rest.size))[-min(wanted, rest.size)])
        for k, field in self._interpolated(depth, target.shape):
            target[:, :, k][field >= threshold - TIE] = 1

    def _interpolated(self, depth: Floats, shape: tuple[int, ...]) -> Iterator[tuple[int, Floats]]:
        """A field of blocks, interpolated linearly at the centres of a box's voxels, plane by plane."""
        weights = [_between(n, step, count) for n, step, count in zip(shape, self.steps, depth.shape, strict=True)]
        rows, columns, planes = weights
        for k in range(shape[2]):
            plane = _mixed(depth, (planes[0][k], planes[1][k], planes[2][k]), 2)
            yield k, _mixed(_mixed(plane, columns, 1), rows, 0)


Weights = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]
"""For each voxel along an axis, the two blocks whose centres it lies between, and the weight of the second one."""


def _between(count: int, step: int, blocks: int) -> Weights:
    """The positions of voxel centres between block centres. The outermost blocks are extrapolated."""
    places = np.clip((np.arange(count) + 0.5) / step - 0.5, 0, blocks - 1)
    first = np.floor(places).astype(np.intp)
    return first, np.minimum(first + 1, blocks - 1), (places - first).astype(np.float32)


def _mixed(field: Floats, weights: Weights, axis: int) -> Floats:
    """Interpolate a field along one axis."""
    first, second, share = weights
    shares = np.expand_dims(share, 1) if axis == 0 else share
    mixed: Floats = field.take(first, axis) * (1 - shares) + field.take(second, axis) * shares
    return mixed


def _lengths(lower: int, upper: int, step: int, first: int, last: int) -> npt.NDArray[np.intp]:
    """For each block along an axis, the number of its voxels from `first` (inclusive) to `last` (exclusive)."""
    starts = np.arange(lower, upper, step)
    ends = np.minimum(np.minimum(starts + step, upper), last)
    lengths: npt.NDArray[np.intp] = np.maximum(0, ends - np.maximum(starts, first))
    return lengths


def _product(lengths: Sequence[npt.NDArray[np.intp]]) -> npt.NDArray[np.intp]:
    i, j, k = lengths
    product: npt.NDArray[np.intp] = i[:, None, None] * j[None, :, None] * k[None, None, :]
    return product


def _block_means(array: Floats, axis: int, step: int) -> Floats:
    starts = np.arange(0, array.shape[axis], step)
    sizes = np.diff(np.append(starts, array.shape[axis])).astype(np.float32)
    return np.asarray(np.add.reduceat(array, starts, axis=axis) / np.expand_dims(sizes, 1 - axis), dtype=np.float32)


def _finite(part: npt.NDArray[Any], array: npt.NDArray[Any]) -> Floats:
    """A part of an array as floats; values that are not finite, such as padding, become the array's least value."""
    values = part.astype(np.float32)
    if part.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        values[~finite] = least_finite(array)
    return values


def _triple(numbers: Any) -> Point:
    i, j, k = (int(n) for n in numbers)
    return i, j, k
