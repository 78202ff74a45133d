"""The region of an image that is segmented: a box around the marks, block-averaged where it would be too large.

Cost follows from the structure's size, not from the image's. Pure functions, thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Box, Floats, Labels, Shape, Spacing
from rayapp.inference.energy.sparse_slices import signed_distance
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import least_finite
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

MAX_VOXELS = 300_000
"""Largest number of blocks in a region."""


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

    def marks(self, marks: Marks) -> Marks:
        """Each block's majority among its marked voxels; a tie is foreground, and unmarked blocks are 0."""
        part = marks[self.box]
        if self.steps == (1, 1, 1):
            return part.copy()
        votes, marked = np.zeros(self.shape, dtype=np.int32), np.zeros(self.shape, dtype=bool)
        for k in np.flatnonzero(part.any(axis=(0, 1))):
            voxels = np.nonzero(part[:, :, k])
            block = (voxels[0] // self.steps[0], voxels[1] // self.steps[1], k // self.steps[2])
            np.add.at(votes, block, np.where(part[:, :, k][voxels] == FOREGROUND, 1, -1))
            marked[block] = True
        return np.where(marked, np.where(votes >= 0, FOREGROUND, BACKGROUND), 0).astype(np.uint8)

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
        steps = np.array(self.steps, dtype=float)
        field = ndimage.affine_transform(
            signed_distance(mask[near], steps),
            1 / steps,
            0.5 / steps - 0.5,
            output_shape=target[fine].shape,
            order=1,
            mode="nearest",
        )
        # Interpolation rounds corners off, so the threshold is the one at which the mask keeps its volume.
        size = min(field.size, np.count_nonzero(mask) * int(np.prod(self.steps)))
        target[fine][field >= min(0.0, np.partition(field, -size, axis=None)[-size])] = 1


def _block_means(array: Floats, axis: int, step: int) -> Floats:
    starts = np.arange(0, array.shape[axis], step)
    sizes = np.diff(np.append(starts, array.shape[axis])).astype(np.float32)
    return np.asarray(np.add.reduceat(array, starts, axis=axis) / np.expand_dims(sizes, 1 - axis), dtype=np.float32)


def _finite(part: npt.NDArray[Any], array: npt.NDArray[Any]) -> Floats:
    """A part of an array as floats; what is no number, such as padding, has the array's least value."""
    values = part.astype(np.float32)
    if part.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        values[~finite] = least_finite(array)
    return values


def _triple(numbers: Any) -> Point:
    i, j, k = (int(n) for n in numbers)
    return i, j, k
