"""Views: isotropic cubes of any size in millimetres, resampled from an image's own voxels.

All positions are millimetres along the image's axes, from the centre of its first voxel: index times spacing. A view is
sampled axis by axis, with a kernel as wide as the coarser of the two grids, so that nothing aliases and thick slices
are interpolated. Training and serving sample by the same code.

An image of one slice (a radiograph, an ultrasound image, a slice of a stack) is looked at as a column: the same at
every height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Column = tuple[int, float] | None


@dataclass(frozen=True)
class View:
    """A cube to look at.

    Attributes:
        centre: millimetres along the image's three axes.
        size: the cube's edge, millimetres.
        edge: voxels along each axis.
        column: for an image of one slice, the axis across it and its thickness in millimetres.
    """

    centre: tuple[float, float, float]
    size: float
    edge: int
    column: Column = None

    @classmethod
    def around(cls, centre: NDArray[np.float64], size: float, edge: int, column: Column = None) -> View:
        """The view around a position (3), millimetres."""
        return cls((float(centre[0]), float(centre[1]), float(centre[2])), float(size), edge, column)

    def moved(self, by: NDArray[np.float64]) -> View:
        """The view from another origin: its centre moved by (3) millimetres."""
        x, y, z = (np.array(self.centre) + by).tolist()
        return replace(self, centre=(x, y, z))

    @property
    def spacing(self) -> float:
        """The edge of a voxel, millimetres."""
        return self.size / self.edge

    @property
    def cell(self) -> float:
        """What a voxel stands for of the image, cubic millimetres; those of a column share the slice's thickness."""
        return self.spacing**3 if self.column is None else self.spacing**2 * self.column[1] / self.edge

    @property
    def low(self) -> NDArray[np.float64]:
        """The centre of the first voxel, millimetres."""
        return np.asarray(np.array(self.centre) - self.size / 2 + self.spacing / 2)

    def to_voxels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions (…, 3) in millimetres as fractional indices of the view's voxels."""
        return np.asarray((positions - self.low) / self.spacing)

    def to_millimetres(self, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional indices (…, 3) of the view's voxels as positions in millimetres."""
        return np.asarray(voxels * self.spacing + self.low)


class Source:
    """An image to be looked at: its voxels, their spacing, and coarser copies for large views.

    Args:
        array: (i, j, k).
        spacing: millimetres along each axis.
    """

    def __init__(self, array: NDArray[np.generic], spacing: Sequence[float] | NDArray[np.float64]) -> None:
        self.array = array
        self.spacing = np.array(spacing, float)

    @property
    def column(self) -> Column:
        """The axis across an image of one slice and its thickness; None for a volume."""
        flat = [axis for axis in range(3) if self.array.shape[axis] == 1]
        return (flat[-1], float(self.spacing[flat[-1]])) if flat else None

    @property
    def extent(self) -> NDArray[np.float64]:
        """Millimetres from the first voxel's centre to the last one's, along each axis."""
        return np.asarray((np.array(self.array.shape) - 1) * self.spacing)

    @cached_property
    def _levels(self) -> list[tuple[Floats, NDArray[np.float64], NDArray[np.float64]]]:
        """Each level's voxels, spacing and first voxel's centre; the next one is coarser along its finest axes."""
        levels = [(self.array, self.spacing, np.zeros(3))]
        while True:
            array, spacing, start = levels[-1]
            halve = [
                axis for axis in range(3) if spacing[axis] < 1.5 * spacing.min() * 1.001 and array.shape[axis] >= 64
            ]
            if not halve or array.size < 64**3:
                return levels  # type: ignore[return-value]
            coarse = array
            for axis in halve:
                even = coarse.shape[axis] // 2 * 2
                first = np.take(coarse, np.arange(0, even, 2), axis).astype(np.float32)
                coarse = (first + np.take(coarse, np.arange(1, even, 2), axis)) / 2
            step = np.isin(np.arange(3), halve)
            levels.append((coarse, spacing * np.where(step, 2, 1), start + np.where(step, spacing / 2, 0)))

    def sample(self, view: View) -> Floats:
        """The image (edge, edge, edge) in a view; where the view goes beyond the image, its nearest voxels."""
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
        """Mask (edge, edge, edge) of the view's voxels that lie on the image; a column does at every height."""
        sides = []
        for axis in range(3):
            at = view.low[axis] + np.arange(view.edge) * view.spacing
            half = self.spacing[axis] / 2
            everywhere = view.column is not None and view.column[0] == axis
            sides.append(((at >= -half) & (at <= self.extent[axis] + half)) | everywhere)
        return np.asarray(sides[0][:, None, None] & sides[1][None, :, None] & sides[2][None, None, :])


def transfer(
    values: Floats, view: View, start: NDArray[np.float64], spacing: NDArray[np.float64], shape: Sequence[int]
) -> Floats:
    """Values of a view's voxels, linearly interpolated on another grid; beyond the view its outermost values hold.

    Args:
        values: (edge, edge, edge).
        view: where these lie.
        start: the centre of the grid's first voxel, millimetres.
        spacing: of the grid, millimetres.
        shape: of the grid, voxels.
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
    """A mask's values in `view` as seen in `other`: 0 where `view` did not look."""
    edge, step = other.edge, np.full(3, other.spacing)
    moved = transfer(values, view, other.low, step, (edge,) * 3)
    at = other.low[:, None] + np.arange(edge) * other.spacing - np.array(view.centre)[:, None]
    within = np.abs(at) <= view.size / 2
    if view.column is not None:
        within[view.column[0]] = True
    seen = within[0][:, None, None] & within[1][None, :, None] & within[2][None, None, :]
    return np.asarray(moved * seen, np.float32)


def normalised(image: Floats, inside: Bools) -> Floats:
    """Intensities in a view scaled to -1 … 1 between its percentiles .5 and 99.5; 0 beyond the image."""
    seen = image[::2, ::2, ::2][inside[::2, ::2, ::2]]
    if not len(seen):
        return np.zeros_like(image)
    low, high = np.percentile(seen, [0.5, 99.5])
    scaled = np.clip((image - low) * (2 / max(high - low, 1e-6)) - 1, -1, 1)
    return np.asarray(np.where(inside, scaled, 0), np.float32)


def _kernel(targets: NDArray[np.float64], ratio: float, length: int) -> tuple[Floats, int]:
    """Weights (targets, voxels) of a triangle as wide as the coarser grid, and the first voxel they are for.

    Args:
        targets: fractional indices on an axis of `length` voxels.
        ratio: the target grid's spacing over the axis's.
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
