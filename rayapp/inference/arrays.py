"""Array types shared by all of inference; `rayapp.inference` fixes their meaning once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
"""Intensities, log-odds or distances."""
Bools = npt.NDArray[np.bool_]
"""A binary mask."""
Labels = npt.NDArray[np.uint8]
"""A label map: 0 is background, other values are structures."""
Spacing = npt.NDArray[np.float64]
"""Voxel spacing in mm, one number per axis of the array it belongs to."""
Shape = tuple[int, int, int]
"""Voxels along each of three axes."""
Box = tuple[slice, slice, slice]
"""An axis-aligned box of voxels, as an index into a three-dimensional array."""


def contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array in C order without a negative stride, as torch takes it; a copy only where it must be one.

    NumPy calls an array contiguous whatever the stride of an axis of one voxel is, such as one that was flipped.
    """
    ordered = np.ascontiguousarray(array)
    return ordered.copy() if min(ordered.strides, default=0) < 0 else ordered
