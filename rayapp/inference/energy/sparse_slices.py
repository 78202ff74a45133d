"""From outlines on a few slices to a volume: how deep each voxel lies inside the structure, between slices and beyond.

Between two given slices the signed distance to the outline is interpolated linearly (shape-based interpolation, Raya
and Udupa, 1990). Beyond the outermost, the outline shrinks as that of an ellipsoid which ends one gap between slices
further on: annotators spread their slices over the structure. With one slice alone, the ellipsoid is somewhat higher
than the outline is wide, as most organs are. Pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

ALONE = 1.5
"""How far a structure known from one slice reaches beyond it, in radii of a disc of the same area."""
STEEPNESS = 2.0
"""How much faster than towards the ellipsoid's end the depth falls behind it."""


def signed_distance(mask: Bools, spacing: npt.ArrayLike) -> Floats:
    """Millimetres to the outline of a mask that is not empty: positive inside. Around the array is outside."""
    framed = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(framed, sampling=spacing)
    outside = ndimage.distance_transform_edt(~framed, sampling=spacing)
    return np.asarray((inside - outside)[(slice(1, -1),) * mask.ndim], dtype=np.float32)


def depth(slices: Mapping[int, Bools], planes: int, spacing: npt.NDArray[np.float64]) -> Floats:
    """Millimetres that each voxel lies inside the structure, (I, J, planes), negative outside.

    Args:
        slices: by their index along the last axis, (I, J) masks, none of them empty.
        spacing: mm along the three axes.
    """
    at = sorted(slices)
    given = [signed_distance(slices[k], spacing[:2]) for k in at]
    field = np.empty((*given[0].shape, planes), dtype=np.float32)
    for k in range(planes):
        after = int(np.searchsorted(at, k))
        if after in (0, len(at)):
            end = 0 if after == 0 else -1
            away = abs(k - at[end]) * spacing[2] / reach(slices, end, spacing)
            field[..., k] = given[end] - given[end].max() * _lost(away)
        else:
            share = (k - at[after - 1]) / (at[after] - at[after - 1])
            field[..., k] = (1 - share) * given[after - 1] + share * given[after]
    return field


def reach(slices: Mapping[int, Bools], end: int, spacing: npt.NDArray[np.float64]) -> float:
    """Millimetres from the first (`end` 0) or the last (-1) slice to where the structure is expected to end."""
    at = sorted(slices)
    if len(at) > 1:
        return float(abs(at[end] - at[1 if end == 0 else -2]) * spacing[2])
    area = np.count_nonzero(slices[at[0]]) * spacing[0] * spacing[1]
    return float(ALONE * np.sqrt(area / np.pi))


def _lost(away: float) -> float:
    """The share of its largest depth that the structure has lost `away` of its reach beyond the last slice."""
    return 1 - float(np.sqrt(1 - away * away)) if away < 1 else 1 + STEEPNESS * (away - 1)
