"""From outlines on a few slices to a volume: the depth of each voxel inside the structure.

Between two outlined slices the signed distance to the outline is interpolated linearly (shape-based interpolation, Raya
and Udupa, 1990). Beyond the outermost slices the outline shrinks like that of an ellipsoid that ends one gap between
slices further on, since annotators spread their slices over the structure. For a single slice, the ellipsoid is
somewhat taller than the outline is wide, as most organs are. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Floats, Spacing

SINGLE_SLICE_REACH = 1.5
"""Extent of a structure known from a single slice beyond that slice, in radii of a disc of the same area."""
STEEPNESS = 2.0
"""Rate at which depth falls beyond the ellipsoid's end, relative to that towards it."""


def signed_distance(mask: Bools, spacing: npt.ArrayLike) -> Floats:
    """Signed distance in mm to the outline of a non-empty mask, positive inside.

    Args:
        mask: The mask; everything around the array counts as outside.
        spacing: mm along each axis.
    """
    framed = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(framed, sampling=spacing)
    outside = ndimage.distance_transform_edt(~framed, sampling=spacing)
    return np.asarray((inside - outside)[(slice(1, -1),) * mask.ndim], dtype=np.float32)


def interpolated_depth(slices: Mapping[int, Bools], planes: int, spacing: Spacing) -> Floats:
    """Depth of each voxel inside the structure.

    Args:
        slices: Index along the last axis to the outlined slice's mask (I, J), none of them empty.
        planes: Number of slices in the volume.
        spacing: mm along the three axes.

    Returns:
        Depth in mm, (I, J, planes), negative outside.
    """
    indices = sorted(slices)
    given = [signed_distance(slices[k], spacing[:2]) for k in indices]
    field = np.empty((*given[0].shape, planes), dtype=np.float32)
    for k in range(planes):
        after = int(np.searchsorted(indices, k))
        if after in (0, len(indices)):
            end = 0 if after == 0 else -1
            relative = abs(k - indices[end]) * spacing[2] / _reach_mm(slices, end, spacing)
            field[..., k] = given[end] - given[end].max() * _depth_loss(relative)
        else:
            share = (k - indices[after - 1]) / (indices[after] - indices[after - 1])
            field[..., k] = (1 - share) * given[after - 1] + share * given[after]
    return field


def _reach_mm(slices: Mapping[int, Bools], end: int, spacing: Spacing) -> float:
    """Expected distance in mm from the first (`end` 0) or last (`end` -1) slice to the structure's end."""
    indices = sorted(slices)
    if len(indices) > 1:
        return float(abs(indices[end] - indices[1 if end == 0 else -2]) * spacing[2])
    area = np.count_nonzero(slices[indices[0]]) * spacing[0] * spacing[1]
    return float(SINGLE_SLICE_REACH * np.sqrt(area / np.pi))


def _depth_loss(relative: float) -> float:
    """Loss of depth beyond the last slice, as a share of its largest depth.

    Args:
        relative: Distance from the last slice, relative to the expected distance to the structure's end.
    """
    return 1 - float(np.sqrt(1 - relative * relative)) if relative < 1 else 1 + STEEPNESS * (relative - 1)
