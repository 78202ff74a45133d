"""Augmentation of training windows by MONAI's random transforms, simulating variation of patients and scanners.

Transforms take and return `{"image": (C, …), "labels": (1, …)}`, with intensities normalised by
`rayapp.inference.network.normalisation.normalise`. A transform may be used by one thread at a time. `window` turns and
scales images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

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


def augmentation(names: Iterable[str], *, dimensions: int) -> Any:
    """Random flip, smoothing, low resolution, gamma, contrast, brightness and noise, as a MONAI `Compose`.

    Images are flipped along the left-right axis only, and only if no structure's name distinguishes the sides. Contrast
    and brightness change in each channel by itself.

    Args:
        names: Names of the structures.
        dimensions: 2 or 3 spatial axes.
    """
    from monai import transforms as t  # takes seconds to import

    smooth = "trilinear" if dimensions == 3 else "bilinear"
    flips = [] if has_sides(names) else [t.RandFlipd(KEYS, prob=0.5, spatial_axis=0)]
    return t.Compose(
        [
            *flips,
            t.RandGaussianSmoothd("image", prob=0.1, **{f"sigma_{axis}": (0.3, 0.8) for axis in "xyz"}),
            t.RandSimulateLowResolutiond("image", prob=0.1, upsample_mode=smooth, zoom_range=(0.5, 1.0)),
            t.RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5), retain_stats=True),
            t.RandScaleIntensityd("image", factors=0.25, prob=0.6, channel_wise=True),
            t.RandShiftIntensityd("image", offsets=0.3, prob=0.6, channel_wise=True),
            t.RandGaussianNoised("image", prob=0.5, std=0.15),
            t.ThresholdIntensityd("image", threshold=-PADDING, above=False, cval=-PADDING),
            t.ThresholdIntensityd("image", threshold=PADDING, above=True, cval=PADDING),
        ],
        map_items=False,
    )
