"""Views: isotropic cubes of any size in millimetres, resampled from an image.

Positions are in mm along the image's axes, from the centre of its first voxel: index times spacing. A view is sampled
axis by axis, with a kernel as wide as the coarser of the two grids, so that there is no aliasing and thick slices are
interpolated. Training and inference use the same code.

An image of one slice (a radiograph, an ultrasound image, a slice of a stack) is treated as a column: the same at every
height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SLAB = 16
"""Planes that are made coarser at a time: an image of 1.5 GB must not take ten meanwhile."""
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Column = tuple[int, float] | None


@dataclass(frozen=True)
class View:
    """A cube-shaped field of view.

    Attributes:
        centre: mm along the image's three axes.
        size: edge of the cube, mm.
        edge: number of voxels along each axis.
        column: for an image of one slice, the axis across it and its thickness in mm.
    """

    centre: tuple[float, float, float]
    size: float
    edge: int
    column: Column = None

    @classmethod
    def around(cls, centre: NDArray[np.float64], size: float, edge: int, column: Column = None) -> View:
        """The view around a position (3), in mm."""
        return cls((float(centre[0]), float(centre[1]), float(centre[2])), float(size), edge, column)

    def moved(self, by: NDArray[np.float64]) -> View:
        """The view in coordinates with another origin: its centre is moved by (3) mm."""
        x, y, z = (np.array(self.centre) + by).tolist()
        return replace(self, centre=(x, y, z))

    @property
    def spacing(self) -> float:
        """Voxel spacing, mm."""
        return self.size / self.edge

    @property
    def cell(self) -> float:
        """Volume in mm³ of the image that a voxel stands for; in a column all voxels above each other share the slice's
        thickness.
        """
        return self.spacing**3 if self.column is None else self.spacing**2 * self.column[1] / self.edge

    @property
    def low(self) -> NDArray[np.float64]:
        """Centre of the first voxel, mm."""
        return np.asarray(np.array(self.centre) - self.size / 2 + self.spacing / 2)

    def to_voxels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert positions (…, 3) in mm to fractional indices of the view."""
        return np.asarray((positions - self.low) / self.spacing)

    def to_millimetres(self, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert fractional indices (…, 3) of the view to positions in mm."""
        return np.asarray(voxels * self.spacing + self.low)


class Source:
    """An image with its voxel spacing and coarser copies for large views.

    Args:
        array: (i, j, k).
        spacing: mm along each axis.
    """

    def __init__(self, array: NDArray[np.generic], spacing: Sequence[float] | NDArray[np.float64]) -> None:
        self.array = array
        self.spacing = np.array(spacing, float)

    @property
    def column(self) -> Column:
        """For an image of one slice the axis across it and its thickness; None for a volume."""
        flat = [axis for axis in range(3) if self.array.shape[axis] == 1]
        return (flat[-1], float(self.spacing[flat[-1]])) if flat else None

    @property
    def extent(self) -> NDArray[np.float64]:
        """Distance in mm from the first voxel's centre to the last one's, along each axis."""
        return np.asarray((np.array(self.array.shape) - 1) * self.spacing)

    @cached_property
    def _levels(self) -> list[tuple[Floats, NDArray[np.float64], NDArray[np.float64]]]:
        """For each level its voxels, spacing and first voxel's centre; each level is coarser than the previous one
        along the finest axes.
        """
        levels = [(self.array, self.spacing, np.zeros(3))]
        while True:
            array, spacing, start = levels[-1]
            halve = [
                axis for axis in range(3) if spacing[axis] < 1.5 * spacing.min() * 1.001 and array.shape[axis] >= 64
            ]
            if not halve or array.size < 64**3:
                return levels  # type: ignore[return-value]
            coarse = np.empty([n // 2 if axis in halve else n for axis, n in enumerate(array.shape)], np.float32, "F")
            factor = 2 if 2 in halve else 1
            for at in range(0, coarse.shape[2], SLAB):
                slab = array[:, :, at * factor : (at + SLAB) * factor]
                coarse[:, :, at : at + SLAB] = _halved(slab, halve)[:, :, : coarse.shape[2] - at]
            step = np.isin(np.arange(3), halve)
            levels.append((coarse, spacing * np.where(step, 2, 1), start + np.where(step, spacing / 2, 0)))

    def sample(self, view: View) -> Floats:
        """Sample the image in a view, (edge, edge, edge); beyond the image its nearest voxels are repeated."""
        array, spacing, start = next(
            (level for level in reversed(self._levels) if level[1].max() <= view.spacing * 1.01), self._levels[0]
        )
        matrices, boxes = [], []
        for axis in range(3):
            targets = (view.low[axis] + np.arange(view.edge) * view.spacing - start[axis]) / spacing[axis]
            matrix, first = _kernel(targets, view.spacing / spacing[axis], array.shape[axis])
            matrices.append(matrix)
            boxes.append(slice(first, first + matrix.shape[1]))
        part = np.asarray(array[tuple(boxes)], np.float32)
        return _separable(part, matrices)

    def inside(self, view: View) -> Bools:
        """Mask (edge, edge, edge) of the view's voxels that lie in the image; in a column at every height."""
        sides = []
        for axis in range(3):
            at = view.low[axis] + np.arange(view.edge) * view.spacing
            half = self.spacing[axis] / 2
            everywhere = view.column is not None and view.column[0] == axis
            sides.append(((at >= -half) & (at <= self.extent[axis] + half)) | everywhere)
        return np.asarray(sides[0][:, None, None] & sides[1][None, :, None] & sides[2][None, None, :])


def _halved(array: NDArray[np.generic], axes: Sequence[int]) -> Floats:
    """The means of neighbouring voxels in pairs along some axes."""
    for axis in axes:
        even = array.shape[axis] // 2 * 2
        first, second = (
            array[tuple(slice(start, even, 2) if n == axis else slice(None) for n in range(3))] for start in (0, 1)
        )
        array = (first.astype(np.float32) + second.astype(np.float32)) / np.float32(2)
    return np.asarray(array, np.float32)


def transfer(
    values: Floats, view: View, start: NDArray[np.float64], spacing: NDArray[np.float64], shape: Sequence[int]
) -> Floats:
    """Resample values of a view onto another grid by linear interpolation; beyond the view its outermost values are
    repeated.

    Args:
        values: (edge, edge, edge).
        view: the grid of `values`.
        start: centre of the target grid's first voxel, mm.
        spacing: spacing of the target grid, mm.
        shape: voxels of the target grid.
    """
    matrices = []
    for axis in range(3):
        at = (start[axis] + np.arange(shape[axis]) * spacing[axis] - view.low[axis]) / view.spacing
        matrix, first = _kernel(at, spacing[axis] / view.spacing, view.edge)
        full = np.zeros((len(at), view.edge), np.float32)
        full[:, first : first + matrix.shape[1]] = matrix
        matrices.append(full)
    return _separable(values, matrices)


def between(values: Floats, view: View, other: View) -> Floats:
    """Resample a mask from one view to another; 0 outside the first."""
    edge, step = other.edge, np.full(3, other.spacing)
    moved = transfer(values, view, other.low, step, (edge,) * 3)
    at = other.low[:, None] + np.arange(edge) * other.spacing - np.array(view.centre)[:, None]
    within = np.abs(at) <= view.size / 2
    if view.column is not None:
        within[view.column[0]] = True
    seen = within[0][:, None, None] & within[1][None, :, None] & within[2][None, None, :]
    return np.asarray(moved * seen, np.float32)


def normalised(image: Floats, inside: Bools) -> Floats:
    """Scale intensities in a view to -1 … 1 between its 0.5th and 99.5th percentiles; 0 outside the image."""
    seen = image[::2, ::2, ::2][inside[::2, ::2, ::2]]
    if not len(seen):
        return np.zeros_like(image)
    low, high = np.percentile(seen, [0.5, 99.5])
    scaled = np.clip((image - low) * (2 / max(high - low, 1e-6)) - 1, -1, 1)
    return np.asarray(np.where(inside, scaled, 0), np.float32)


def _kernel(targets: NDArray[np.float64], ratio: float, length: int) -> tuple[Floats, int]:
    """Weights (targets, voxels) of a triangular kernel as wide as the coarser grid, and the index of the first voxel
    they apply to.

    Args:
        targets: fractional indices on an axis of `length` voxels.
        ratio: ratio of the target grid's spacing to the axis's.
        length: number of voxels of the axis.
    """
    width = max(1.0, ratio)
    clipped = np.clip(targets, 0, length - 1)
    first = max(0, int(np.floor(clipped[0] - width)))
    last = min(length - 1, int(np.ceil(clipped[-1] + width)))
    voxels = np.arange(first, last + 1)
    weights = np.maximum(0, 1 - np.abs(voxels[None] - clipped[:, None]) / width)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32), first


def _separable(part: Floats, matrices: list[Floats]) -> Floats:
    x, y, z = matrices
    a, b, c = part.shape
    flat = x @ part.reshape(a, b * c)
    flat = np.matmul(y, flat.reshape(len(x), b, c))
    return np.ascontiguousarray(flat @ z.T)
