"""Augmentation of training images by MONAI's random transforms, simulating variation of patients and scanners.

Transforms take and return `{"image": (C, …), "labels": (1, …)}`, with intensities normalised by
`rayapp.inference.network.normalisation.normalise`; `window` also takes the `places` of a case. A transform may be used
by one thread at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rayapp.inference.network.normalisation import PADDING

KEYS = ("image", "labels")
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_NUMBERED = re.compile(r"(?<![A-Za-z])[A-Za-z]\d")
"""A letter with a number, such as the vertebra L1, which is not a side."""
_SIDES = {
    *("left", "right", "l", "r", "lt", "rt", "lh", "rh", "sin", "dex", "sinister", "dexter"),
    *("lul", "lll", "rul", "rml", "rll"),  # lobes of the lung
    *("lv", "rv", "la", "ra", "lad", "lca", "rca"),  # parts of the heart
}
"""Words that tell left from right."""


def has_sides(names: Iterable[str]) -> bool:
    """True if a structure's name distinguishes left from right, so that images must not be mirrored.

    Names may be written in any way: `left kidney`, `kidney_l`, `LeftKidney`, `lungL`, `lobe-RUL`.
    """
    return any(word.lower() in _SIDES for name in names for word in _WORDS.findall(_NUMBERED.sub(" ", name)))


def augmentation(names: Iterable[str], *, dimensions: int, spacing: float | Sequence[float] = 1.0) -> Any:
    """Random flip, affine, smoothing, low resolution, gamma, contrast, brightness and noise, as a MONAI `Compose`.
    Contrast and brightness change in each channel by itself.

    Images are flipped along the left-right axis only, and only if no structure's name distinguishes the sides. Voxels
    that a rotation brings in from outside the image become `PADDING`.

    Args:
        names: Names of the structures.
        dimensions: 2 or 3 spatial axes.
        spacing: Voxel spacing in mm. Rotations and translations act on voxel indices and are smaller along coarse axes.
    """
    from monai import transforms as t  # takes seconds to import

    edges = np.broadcast_to(np.array(spacing, dtype=float), dimensions)
    edges = np.where(edges > 0, edges, 1)
    angle, shift = 0.26, 4 * edges.min() / edges  # radians, voxels
    planes = [(1, 2), (0, 2), (0, 1)] if dimensions == 3 else [(0, 1)]
    angles = [angle * float(edges[[*plane]].min() / edges[[*plane]].max()) for plane in planes]
    flips = [] if has_sides(names) else [t.RandFlipd(KEYS, prob=0.5, spatial_axis=0)]
    return t.Compose(
        [
            t.CastToTyped("image", dtype=np.float32),
            *flips,
            t.ShiftIntensityd("image", offset=-PADDING),
            t.RandAffined(
                KEYS,
                prob=0.6,
                rotate_range=angles,
                translate_range=[float(by) for by in shift],
                scale_range=((-0.15, 0.2),) * dimensions,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            t.ShiftIntensityd("image", offset=PADDING),
            t.RandGaussianSmoothd("image", prob=0.1, **{f"sigma_{axis}": (0.3, 0.8) for axis in "xyz"}),
            t.RandSimulateLowResolutiond("image", prob=0.1, zoom_range=(0.5, 1.0)),
            t.RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5), retain_stats=True),
            t.RandScaleIntensityd("image", factors=0.25, prob=0.6, channel_wise=True),
            t.RandShiftIntensityd("image", offsets=0.3, prob=0.6, channel_wise=True),
            t.RandGaussianNoised("image", prob=0.5, std=0.15),
            t.ThresholdIntensityd("image", threshold=-PADDING, above=False, cval=-PADDING),
            t.ThresholdIntensityd("image", threshold=PADDING, above=True, cval=PADDING),
        ],
        map_items=False,
    )


def window(roi_size: Sequence[int], classes: int) -> Any:
    """A random crop of size `roi_size`, centred on one of the `places` of a random class.

    Along axes on which the image is smaller, all of it is taken, without padding, as inference sees it (see
    `rayapp.inference.network.sliding_window`).

    Args:
        roi_size: Size of the crop in voxels.
        classes: Number of classes, including background; all have equal probability.
    """
    from monai import transforms as t

    return t.RandCropByLabelClassesd(
        KEYS,
        "labels",
        roi_size,
        ratios=[1] * classes,
        num_classes=classes,
        num_samples=1,
        indices_key="places",
        allow_smaller=True,
        warn=False,
    )
