"""Augmentation: other patients and scanners than those at hand, by MONAI's random transforms.

Transforms take and give `{"image": (C, …), "labels": (1, …)}`, normalised as
`rayapp.inference.network.normalisation.normalise` does. One thread runs a transform at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rayapp.inference.network.normalisation import PADDING

KEYS = ("image", "labels")
_SIDES = re.compile(r"(^|[^a-z])(left|right|l|r|lt|rt)($|[^a-z])", re.IGNORECASE)


def sided(names: Iterable[str]) -> bool:
    """Whether a structure's name tells left from right: then mirrored images are wrong."""
    return any(_SIDES.search(name) for name in names)


def augmentation(names: Iterable[str], *, dimensions: int, spacing: float | Sequence[float] = 1.0) -> Any:
    """Random affine, flips, contrast, brightness, smoothing and noise, as a MONAI `Compose`.

    Left and right are exchanged only where no structure's name tells them apart. Nothing else is flipped: no patient
    has the front at the back. What turning brings in from beyond the image is `PADDING`. `spacing` (mm, of the images'
    voxels) is needed where axes differ in it: images are turned and moved as voxels, and less along coarse axes.
    """
    from monai import transforms as t  # takes seconds to import

    edges = np.broadcast_to(np.array(spacing, dtype=float), dimensions)
    edges = np.where(edges > 0, edges, 1)
    turn, shift = 0.26, 4 * edges.min() / edges  # radians, voxels
    planes = [(1, 2), (0, 2), (0, 1)] if dimensions == 3 else [(0, 1)]
    turns = [turn * float(edges[[*plane]].min() / edges[[*plane]].max()) for plane in planes]
    flips = [] if sided(names) else [t.RandFlipd(KEYS, prob=0.5, spatial_axis=0)]
    return t.Compose(
        [
            *flips,
            t.ShiftIntensityd("image", offset=-PADDING),
            t.RandAffined(
                KEYS,
                prob=0.6,
                rotate_range=turns,
                translate_range=[float(by) for by in shift],
                scale_range=((-0.15, 0.2),) * dimensions,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            t.ShiftIntensityd("image", offset=PADDING),
            t.RandGaussianSmoothd("image", prob=0.1, **{f"sigma_{axis}": (0.3, 0.8) for axis in "xyz"}),
            t.RandScaleIntensityd("image", factors=0.25, prob=0.6),
            t.RandShiftIntensityd("image", offsets=0.3, prob=0.6),
            t.RandGaussianNoised("image", prob=0.5, std=0.15),
            t.ThresholdIntensityd("image", threshold=-PADDING, above=False, cval=-PADDING),
            t.ThresholdIntensityd("image", threshold=PADDING, above=True, cval=PADDING),
        ],
        map_items=False,
    )


def window(roi_size: Sequence[int], classes: int) -> Any:
    """Pads to `roi_size`, or cuts as much out of a larger image: around each label, background too, as often."""
    from monai import transforms as t

    return t.Compose(
        [
            t.SpatialPadd("image", roi_size, method="end", constant_values=PADDING),
            t.SpatialPadd("labels", roi_size, method="end", constant_values=0),
            t.RandCropByLabelClassesd(
                KEYS, "labels", roi_size, ratios=[1] * classes, num_classes=classes, num_samples=1, warn=False
            ),
        ]
    )
