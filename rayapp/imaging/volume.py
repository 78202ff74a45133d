"""Volume and Segmentation: voxels on a grid, the basic types of the whole package.

Immutable by convention: arrays are shared between threads and must not be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
"""A (4, 4) matrix from voxel index (i, j, k, 1) to RAS mm."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """An image. `array` has shape (C, I, J, K), with i the fastest axis in files; `affine` maps index to RAS mm; `path`
    is the file or folder that it was read from, if it was.
    """

    array: npt.NDArray[Any]
    affine: Affine
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        _, i, j, k = self.array.shape
        return i, j, k

    @property
    def channels(self) -> int:
        return int(self.array.shape[0])

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The voxel grid of an image without its values, which a label map must match."""

    shape: tuple[int, int, int]
    affine: Affine


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A label map. `array` has shape (I, J, K) and an unsigned integer type; `names` maps name to value."""

    array: npt.NDArray[Any]
    affine: Affine
    names: dict[str, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.array.shape
        return i, j, k


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Segments that may overlap. `array` has shape (S, I, J, K), boolean; `names` has one name per segment."""

    array: npt.NDArray[np.bool_]
    affine: Affine
    names: tuple[str, ...]

    @property
    def overlap(self) -> bool:
        """True if a voxel belongs to several segments."""
        return bool((self.array.sum(axis=0, dtype=np.uint16) > 1).any())


def painting_order(sizes: Sequence[float]) -> list[int]:
    """Order in which to paint structures that may overlap: largest first, ties in the given order."""
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])


def flatten(masks: Masks) -> Segmentation:
    """A label map with values 1..S of masks that may overlap; where they do, the smaller mask covers the larger."""
    count = len(masks.names)
    array = np.zeros(masks.array.shape[1:], np.uint8 if count < 256 else np.uint16, order="F")
    for place in painting_order([int(mask.sum()) for mask in masks.array]):
        array[masks.array[place]] = place + 1
    return Segmentation(array=array, affine=masks.affine, names={name: n for n, name in enumerate(masks.names, 1)})


def shifted(array: npt.NDArray[Any], intercept: int) -> npt.NDArray[Any]:
    """Stored values plus the intercept: int16 if they fit, as those of CT do, else int32 or float32.

    The array may be overwritten.
    """
    low, high = int(array.min()) + intercept, int(array.max()) + intercept
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= min(low, intercept) and max(high, intercept) <= np.iinfo(kind).max:
            same = array.itemsize == np.dtype(kind).itemsize
            shifted: npt.NDArray[Any] = array.view(kind) if same else array.astype(kind)
            shifted += kind(intercept)  # exact despite wrap-around: the sums fit
            return shifted
    return array.astype(np.float32) + np.float32(intercept)
