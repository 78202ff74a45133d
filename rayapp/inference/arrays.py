"""Array types shared by all of inference; `rayapp.inference` fixes their meaning once."""

from __future__ import annotations

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
