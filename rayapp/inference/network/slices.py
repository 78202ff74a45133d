"""Slice stacks: a volume as a stack of images, for two-dimensional networks.

Slices are those of the acquisition, across the source's k. Each lies on the network grid of a single slice, reoriented
and resampled in its plane as volumes are in space; across slices nothing is resampled. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.geometry import Orientation
from rayapp.imaging.volume import Affine
from rayapp.inference.arrays import Floats, Labels, Shape
from rayapp.inference.network.network_grid import NetworkGrid


def slice_grid(
    shape: Shape,
    affine: Affine,
    *,
    spacing_mm: float | Sequence[float],
    limit: Sequence[int],
    divisor: Sequence[int],
) -> NetworkGrid:
    """The network grid of a single slice (I, J, 1), which has one plane along the stacking axis.

    Numbers per axis are along the slice's two in-plane patient axes: those of R, A, S that slices are not stacked
    along, in this order.

    Args:
        shape: Source voxels along i, j, k.
        affine: Source index to RAS mm.
        spacing_mm: Network spacing in mm, one number or two.
        limit: Largest number of pixels along the two axes.
        divisor: Sizes are padded to multiples of these two numbers.
    """
    axis = _stacking_axis(affine)
    step, most, multiple = list(np.broadcast_to(spacing_mm, 2)), list(limit), list(divisor)
    for numbers in (step, most, multiple):
        numbers.insert(axis, 1)
    return NetworkGrid.fit((shape[0], shape[1], 1), affine, spacing_mm=step, limit=most, divisor=multiple)


def stack(grid: NetworkGrid, affine: Affine, array: npt.NDArray[Any]) -> Floats:
    """Resample every slice of one channel to the network grid.

    Args:
        grid: The slices' grid, of `slice_grid`.
        affine: Source index to RAS mm.
        array: Intensities, (I, J, K).

    Returns:
        Shape (K, X, Y) with X and Y in the plane of the network grid; padding is NaN.
    """
    axis = _stacking_axis(affine)
    slices = [grid.from_source(array[:, :, k : k + 1]).take(0, axis) for k in range(array.shape[2])]
    return np.stack(slices)


def label_stack(grid: NetworkGrid, affine: Affine, labels: npt.NDArray[Any]) -> Labels:
    """Sample every slice of a label map (I, J, K) at the pixels' centres; arguments and shape as for `stack`."""
    axis = _stacking_axis(affine)
    slices = [grid.labels_from_source(labels[:, :, k : k + 1]).take(0, axis) for k in range(labels.shape[2])]
    return np.stack(slices)


def plane(affine: Affine, image: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    """One slice of a stack as a volume of one plane, on which `NetworkGrid.positions` of clicks at (i, j, 0) lie.

    Args:
        affine: Source index to RAS mm.
        image: Stacked channels, (C, K, X, Y).
        k: The slice's index.

    Returns:
        Shape (C, R, A, S) with one voxel along the stacking axis.
    """
    return np.expand_dims(image[:, k], 1 + _stacking_axis(affine))


def _stacking_axis(affine: Affine) -> int:
    """The patient axis (0 to 2 for R, A, S) along which slices are stacked."""
    return Orientation.of(affine).axes.index(2)
