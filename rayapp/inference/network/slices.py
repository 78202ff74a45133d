"""Slices: a volume as a stack of images, for networks of two dimensions.

Slices are those the image was acquired in, along the source's k. Each lies on the grid of one slice, turned and
resampled in its plane as volumes are in space; along the stack nothing is resampled. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.geometry import Orientation
from rayapp.imaging.volume import Affine
from rayapp.inference.network.network_grid import Floats, Labels, NetworkGrid


def slice_grid(
    shape: tuple[int, int, int],
    affine: Affine,
    *,
    spacing_mm: float | Sequence[float],
    limit: Sequence[int],
    divisor: Sequence[int],
) -> NetworkGrid:
    """The grid of one slice (I, J, 1), which has one plane across the stack's axis too.

    `spacing_mm`, `limit` (pixels, at most) and `divisor` are as `NetworkGrid.fit` takes them, but for the plane's two
    patient axes: of R, A and S those that slices are not stacked along, in this order.
    """
    across = _across(affine)
    step, most, multiple = list(np.broadcast_to(spacing_mm, 2)), list(limit), list(divisor)
    for numbers in (step, most, multiple):
        numbers.insert(across, 1)
    return NetworkGrid.fit((shape[0], shape[1], 1), affine, spacing_mm=step, limit=most, divisor=multiple)


def stack(grid: NetworkGrid, affine: Affine, array: npt.NDArray[Any]) -> Floats:
    """One channel (I, J, K) as (K, X, Y) on the network's grid, padded with NaN."""
    across = _across(affine)
    slices = [grid.from_source(array[:, :, k : k + 1]).take(0, across) for k in range(array.shape[2])]
    return np.stack(slices)


def label_stack(grid: NetworkGrid, affine: Affine, labels: npt.NDArray[Any]) -> Labels:
    """The labels at the pixels' centres, (K, X, Y)."""
    across = _across(affine)
    slices = [grid.labels_from_source(labels[:, :, k : k + 1]).take(0, across) for k in range(labels.shape[2])]
    return np.stack(slices)


def plane(affine: Affine, image: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    """One of an image's slices, (C, K, X, Y), as a volume of one, (C, R, A, S): where the slice's grid has its pixels.

    `NetworkGrid.positions` of clicks at (i, j, 0) lie on it.
    """
    return np.expand_dims(image[:, k], 1 + _across(affine))


def _across(affine: Affine) -> int:
    """The patient axis that slices are stacked along."""
    return Orientation.of(affine).axes.index(2)
