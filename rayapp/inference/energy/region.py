"""The part of an image that is worked on: a box around the marks, coarser than the image where it would be too large.

Costs follow from the structure's size and not from the image's. Pure functions; safe from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Box, Floats, Shape
from rayapp.inference.energy.sparse_slices import signed_distance
from rayapp.inference.infer_task import Point
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

Bools = npt.NDArray[np.bool_]

MAX_VOXELS = 300_000
"""Voxels that are worked on at once."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Source voxels from `lower` to `upper` (exclusive), averaged in blocks of `steps`; the last blocks may be cut."""

    lower: Point
    upper: Point
    steps: Point

    @classmethod
    def around(
        cls,
        lower: npt.ArrayLike,
        upper: npt.ArrayLike,
        shape: Shape,
        spacing: npt.NDArray[np.float64],
        *,
        most: int = MAX_VOXELS,
    ) -> Region:
        """The box clipped to an image of `shape`, with the finest axes averaged until it has at most `most` voxels."""
        low = np.maximum(0, np.asarray(lower)).astype(int)
        high = np.minimum(shape, np.asarray(upper)).astype(int)
        steps = np.ones(3, dtype=int)
        while np.prod(-(-(high - low) // steps)) > most:
            steps[int(np.argmin(spacing * steps))] += 1
        return cls(lower=_point(low), upper=_point(high), steps=_point(steps))

    @property
    def box(self) -> Box:
        """Its voxels in the source."""
        i, j, k = (slice(a, b) for a, b in zip(self.lower, self.upper, strict=True))
        return i, j, k

    @property
    def shape(self) -> Shape:
        """Blocks along each axis."""
        return _point([-(-(b - a) // n) for a, b, n in zip(self.lower, self.upper, self.steps, strict=True)])

    def image(self, array: npt.NDArray[Any]) -> Floats:
        """Means of one channel's blocks, float32; no float copy of the whole box is made."""
        part = array[self.box]
        if self.steps == (1, 1, 1):
            return _finite(part)
        means = np.empty(self.shape, dtype=np.float32)
        for k in range(self.shape[2]):
            slab = _finite(part[:, :, k * self.steps[2] : (k + 1) * self.steps[2]]).mean(axis=2)
            means[:, :, k] = _block_means(_block_means(slab, 0, self.steps[0]), 1, self.steps[1])
        return means

    def marks(self, marks: Marks) -> Marks:
        """What most marked voxels of each block say."""
        part = marks[self.box]
        if self.steps == (1, 1, 1):
            return part.copy()
        votes, seen = np.zeros(self.shape, dtype=np.int32), np.zeros(self.shape, dtype=bool)
        for k in np.flatnonzero(part.any(axis=(0, 1))):
            at = np.nonzero(part[:, :, k])
            block = (at[0] // self.steps[0], at[1] // self.steps[1], k // self.steps[2])
            np.add.at(votes, block, np.where(part[:, :, k][at] == FOREGROUND, 1, -1))
            seen[block] = True
        return np.where(seen, np.where(votes >= 0, FOREGROUND, BACKGROUND), 0).astype(np.uint8)

    def restore(self, mask: Bools, labels: npt.NDArray[np.uint8]) -> None:
        """Write 1 into `labels` (of the source's shape) where the region's mask is, smooth between blocks."""
        if not mask.any():
            return
        target = labels[self.box]
        if self.steps == (1, 1, 1):
            target[mask] = 1
            return
        found = ndimage.find_objects(mask.view(np.uint8))[0]
        near = tuple(slice(max(0, s.start - 2), min(n, s.stop + 2)) for s, n in zip(found, self.shape, strict=True))
        fine = tuple(
            slice(s.start * step, min(s.stop * step, n))
            for s, step, n in zip(near, self.steps, target.shape, strict=True)
        )
        steps = np.array(self.steps, dtype=float)
        field = ndimage.affine_transform(
            signed_distance(mask[near], steps),
            1 / steps,
            0.5 / steps - 0.5,
            output_shape=target[fine].shape,
            order=1,
            mode="nearest",
        )
        # Interpolation rounds corners off; the level is the one at which the structure is as large as its blocks.
        size = min(field.size, np.count_nonzero(mask) * int(np.prod(self.steps)))
        target[fine][field >= min(0.0, np.partition(field, -size, axis=None)[-size])] = 1


def _block_means(array: Floats, axis: int, step: int) -> Floats:
    starts = np.arange(0, array.shape[axis], step)
    sizes = np.diff(np.append(starts, array.shape[axis])).astype(np.float32)
    return np.asarray(np.add.reduceat(array, starts, axis=axis) / np.expand_dims(sizes, 1 - axis), dtype=np.float32)


def _finite(array: npt.NDArray[Any]) -> Floats:
    values = array.astype(np.float32)
    return np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0) if array.dtype.kind == "f" else values


def _point(sizes: Any) -> Point:
    i, j, k = (int(n) for n in sizes)
    return i, j, k
