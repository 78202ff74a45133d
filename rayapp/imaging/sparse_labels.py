"""Label maps that are mostly empty, such as strokes: the voxels within a box, and one value outside it.

Memory and time depend on the box, not on the image. Immutable by convention; only the creator of a `part` may write to
it. Thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.imaging.raster import raster

Point = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseLabels:
    """A label map of a whole image of which only a box is stored.

    Numpy reads it as the array (I, J, K) that it stands for; `labels == value` is such an array of bool.

    Attributes:
        shape: Voxels of the image along i, j, k.
        lower: Inclusive lower corner of the box.
        part: The voxels of the box.
        beyond: Value of all voxels outside the box.
    """

    shape: Point
    lower: Point
    part: Labels
    beyond: int = 0

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> SparseLabels:
        """The label map of an array (I, J, K); its box is the bounding box of all labelled voxels."""
        box = bounding_box(array) or (slice(0, 0),) * 3
        part = np.asarray(array[box], dtype=np.uint8, order="F")
        return cls(shape=_triple(array.shape), lower=_triple([side.start for side in box]), part=part)

    @classmethod
    def blank(cls, shape: Point, lower: npt.ArrayLike, upper: npt.ArrayLike, *, beyond: int = 0) -> SparseLabels:
        """A label map without labels within a box, which is clipped to the image, and with the value `beyond` outside
        it.
        """
        low = np.clip(lower, 0, shape)
        high = np.clip(upper, low, shape)
        return cls(shape=shape, lower=_triple(low), part=np.zeros(high - low, np.uint8, order="F"), beyond=beyond)

    @property
    def upper(self) -> Point:
        """Exclusive upper corner of the box."""
        return _triple([low + n for low, n in zip(self.lower, self.part.shape, strict=True)])

    @property
    def box(self) -> Box:
        """The box, as an index into the image."""
        i, j, k = (slice(a, b) for a, b in zip(self.lower, self.upper, strict=True))
        return i, j, k

    @property
    def nbytes(self) -> int:
        """Memory of the box in bytes."""
        return int(self.part.nbytes)

    def __getitem__(self, point: Point) -> int:
        """The label of one voxel."""
        at = [index - low for index, low in zip(point, self.lower, strict=True)]
        inside = all(0 <= index < n for index, n in zip(at, self.part.shape, strict=True))
        return int(self.part[at[0], at[1], at[2]]) if inside else self.beyond

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.within((0, 0, 0), self.shape).astype(dtype or np.uint8, copy=False)

    def __eq__(self, value: object) -> npt.NDArray[np.bool_]:  # type: ignore[override]  # as of arrays
        equal = np.full(self.shape, self.beyond == value, dtype=bool, order="F")
        equal[self.box] = self.part == value
        return equal

    __hash__ = None  # type: ignore[assignment]  # as of arrays

    def within(self, lower: npt.ArrayLike, upper: npt.ArrayLike) -> Labels:
        """The labels of any box of the image, as a new array."""
        low, high = np.asarray(lower), np.asarray(upper)
        labels = np.zeros(high - low, np.uint8, order="F")  # whose pages take no memory until they are written
        if self.beyond:
            labels[:] = self.beyond
        own, there = self.overlap(low, labels)
        there[:] = own
        return labels

    def covering(self, lower: npt.ArrayLike, upper: npt.ArrayLike) -> SparseLabels:
        """The same label map with a larger box, which also contains another box clipped to the image."""
        low, high = np.maximum(0, lower), np.minimum(self.shape, upper)
        if self.part.size:
            low, high = np.minimum(low, self.lower), np.maximum(high, self.upper)
        part = self.within(low, high)
        return SparseLabels(shape=self.shape, lower=_triple(low), part=part, beyond=self.beyond)

    def on_slice(self, k: int) -> SparseLabels:
        """The label map of one slice across the last axis, as an image of its own."""
        i, j, first = self.lower
        rows = slice(k - first, k - first + 1) if first <= k < self.upper[2] else slice(0, 0)
        part, shape = self.part[:, :, rows], (self.shape[0], self.shape[1], 1)
        if not part.size:
            return SparseLabels.blank(shape, (0, 0, 0), (0, 0, 0), beyond=self.beyond)
        return SparseLabels(shape=shape, lower=(i, j, 0), part=part, beyond=self.beyond)

    def over(self, other: SparseLabels) -> SparseLabels:
        """These labels over others, in a box that contains both; where both label a voxel, these count."""
        if not self.part.size:
            return other
        both = other.covering(self.lower, self.upper)
        where, drawn = both.overlap(self.lower, self.part)
        np.copyto(where, drawn, where=drawn > 0)
        return both

    def view(self, lower: npt.ArrayLike, upper: npt.ArrayLike) -> Labels:
        """A view of a part of the box."""
        return self.part[_box(np.subtract(lower, self.lower), np.subtract(upper, self.lower))]

    def overlap(self, lower: npt.ArrayLike, array: npt.NDArray[Any]) -> tuple[Labels, npt.NDArray[Any]]:
        """The overlap of the box with an array at another corner.

        Args:
            lower: Corner of the array in the image.
            array: Any values of a box of the image.

        Returns:
            Views of the label map's box and of the array, restricted to the voxels that they share.
        """
        low = np.asarray(lower)
        first, last = np.maximum(low, self.lower), np.minimum(low + array.shape, self.upper)
        last = np.maximum(first, last)
        return self.part[_box(first - self.lower, last - self.lower)], array[_box(first - low, last - low)]

    def voxels(self, value: int) -> npt.NDArray[np.intp]:
        """Indices (N, 3) of the voxels of the box that have a value."""
        found: npt.NDArray[np.intp] = np.argwhere(self.part == value) + np.array(self.lower)
        return found

    def any(self, value: int) -> bool:
        """True if any voxel of the box has a value."""
        return bool((self.part == value).any())

    def paint(self, labels: npt.NDArray[Any], value: int, label: int) -> None:
        """Set all voxels of the box that have `value` to `label` in a label map of the image, in place."""
        labels[self.box][self.part == value] = label


def bounding_box(array: npt.NDArray[Any]) -> Box | None:
    """The bounding box of all non-zero elements; None if there are none."""
    found = occupied(raster(array))
    return None if found is None else (found[2], found[1], found[0])


def occupied(changed: npt.NDArray[Any]) -> Box | None:
    """Bounding box of the non-zero elements of a C-contiguous array of whole numbers or bool; None without any."""
    plane = np.bitwise_or.reduce(changed, axis=0)  # whole rows at a time: the fastest way to scan the array
    second, third = _span(plane.any(axis=1)), _span(plane.any(axis=0))
    if second is None or third is None:
        return None
    first = _span(np.asarray(changed[:, second, third].any(axis=(1, 2))))
    return None if first is None else (first, second, third)


def _span(flags: npt.NDArray[np.bool_]) -> slice | None:
    indices = np.flatnonzero(flags)
    return slice(int(indices[0]), int(indices[-1]) + 1) if indices.size else None


def _box(low: npt.ArrayLike, high: npt.ArrayLike) -> Box:
    i, j, k = (slice(int(a), int(b)) for a, b in zip(np.asarray(low), np.asarray(high), strict=True))
    return i, j, k


def _triple(numbers: Any) -> Point:
    i, j, k = (int(n) for n in numbers)
    return i, j, k
