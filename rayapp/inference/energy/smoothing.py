"""Gaussian smoothing by millimetres, with a bounded cost at any voxel size."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.inference.arrays import Floats, Spacing

WIDEST = 64.0
"""Largest standard deviation in voxels. Micrometres that were saved as millimetres must not cost a kernel as wide as
millions of voxels."""


def gaussian(channel: Floats, mm: float, spacing: Spacing, **options: Any) -> Floats:
    """Smooth an array.

    Args:
        channel: intensities.
        mm: standard deviation.
        spacing: mm along each axis.
        options: of `scipy.ndimage.gaussian_filter`.
    """
    result: Floats = ndimage.gaussian_filter(channel, np.minimum(mm / np.asarray(spacing), WIDEST), **options)
    return result
