"""Intensity normalisation: of CT by a fixed range of Hounsfield units, of other images by the body's percentiles.

A model's card states the range; one without it, such as a model for MR, was trained on percentiles. Pure functions,
thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayapp.inference.arrays import Floats

PADDING = -2.0
"""Value of voxels outside the image; also the lowest value after normalisation."""
AIR_VARIATION, TISSUE_VARIATION = 0.20, 0.27
"""Bounds on the variation of an image's darker voxels (see `_tissue_share`): up to the first they are air, from the
second they are tissue."""


def normalise(image: Floats, intensities: Sequence[float] | None = None) -> Floats:
    """Scale one channel so that most of the body lies between -1 and 1, clipped to -2 and 2.

    With a range the same voxel gives the same value, whatever the image shows beside it. Without one, voxels brighter
    than the image's mean count as body, since air, and in MR the noise around the patient, are darker; the body's 5th
    and 95th percentiles map to -1 and 1. In an image cropped to within the body the darker voxels are tissue too,
    recognised by their variation: the percentiles are then those of the whole image. Between the two cases the
    percentiles are blended, so that the result is continuous.

    Args:
        image: One channel on the network grid, NaN where there is padding.
        intensities: The range that becomes -1 to 1; None for the percentiles.

    Returns:
        The normalised channel; padding is `PADDING`.
    """
    low, high = _body(image) if intensities is None else intensities
    scale = 2 / max(high - low, 1e-6)
    scaled = (image - np.float32(low)) * np.float32(scale) - 1
    clipped: Floats = np.nan_to_num(np.clip(scaled, PADDING, -PADDING), nan=PADDING)
    return clipped


def _body(image: Floats) -> tuple[float, float]:
    """The 5th and 95th percentile of the body's intensities; see `normalise`."""
    inside = image[~np.isnan(image)]
    mean = inside.mean() if inside.size else np.float32(0)
    bright, dark = inside[inside > mean], inside[inside <= mean]
    low, high = np.percentile(bright, (5, 95)) if bright.size else (0.0, 0.0)
    tissue_share = _tissue_share(dark, bright)
    if tissue_share:
        whole = np.percentile(inside, (5, 95))
        low, high = (1 - tissue_share) * np.array((low, high)) + tissue_share * whole
    return float(low), float(high)


def _tissue_share(dark: Floats, bright: Floats) -> float:
    """Degree to which the darker voxels are tissue, from 0 (air) to 1.

    The criterion is their standard deviation relative to the difference of means between brighter and darker voxels:
    at most 0.19 for air in CT and MR of torsos, at least 0.28 for tissue in MR of the hippocampus.
    """
    if not (bright.size and dark.size):  # the mean of equal values, rounded, may lie below all of them
        return 0.0
    variation = float(dark.std() / (bright.mean() - dark.mean()))
    return min(1.0, max(0.0, (variation - AIR_VARIATION) / (TISSUE_VARIATION - AIR_VARIATION)))
