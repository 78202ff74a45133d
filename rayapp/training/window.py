"""Training windows: parts of an image, or all of it, turned, scaled and shifted at random.

A window is cut out of the turned image, and not turned after it was cut, so that no corner of it is empty where the
image goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from rayapp.inference.network.normalisation import PADDING

Example = tuple[Tensor, Tensor]
"""An image, (C, …) float32, and its labels, (…) uint8."""
Integers = npt.NDArray[np.int64]
ANGLE = 0.26
"""Largest rotation about each axis, in radians; less where voxels are not cubes."""
SHIFT = 4.0
"""Largest shift along each axis, in the shortest voxel edges."""
SCALES = (-0.15, 0.2)
"""Least and largest change of size."""
TURNED = 0.6
"""Share of windows that are turned."""
REACH = 0.5 * ((1 + SCALES[1]) * (1 + 2 * ANGLE) - 1)
"""Farthest that turning and scaling take a window's corner beyond its side, as a share of the window's size."""


class Window:
    """Cuts windows. Used by one thread at a time."""

    def __init__(
        self, roi_size: Sequence[int] | None, *, dimensions: int, spacing: float | Sequence[float], turned: bool
    ) -> None:
        """A source of windows.

        Args:
            roi_size: Size of a window in voxels; None for whole images. Along axes on which the image is smaller, all
                of it is taken, without padding, as inference sees it (see `rayapp.inference.network.sliding_window`).
            dimensions: 2 or 3 spatial axes.
            spacing: Voxel spacing in mm. Rotations and shifts act on voxel indices and are smaller along coarse axes.
            turned: False cuts all windows as they are.
        """
        from monai.transforms import RandAffine  # takes seconds to import

        edges = np.broadcast_to(np.array(spacing, dtype=float), dimensions)
        edges = np.where(edges > 0, edges, 1)
        planes = [(1, 2), (0, 2), (0, 1)] if dimensions == 3 else [(0, 1)]
        self._roi = None if roi_size is None else np.array(roi_size)
        self._share = TURNED if turned else 0.0
        self._turn = RandAffine(
            prob=1.0,
            rotate_range=[ANGLE * float(edges[[*plane]].min() / edges[[*plane]].max()) for plane in planes],
            translate_range=[float(by) for by in SHIFT * edges.min() / edges],
            scale_range=(SCALES,) * dimensions,
            padding_mode="zeros",
        )

    def cut(
        self, image: Tensor, labels: Tensor, rng: np.random.Generator, *, places: Sequence[Integers] = ()
    ) -> Example:
        """A window of an image.

        Args:
            image: Normalised channels, (C, …).
            labels: Label map, (…).
            rng: Source of randomness.
            places: By value, indices of the flattened label map. Values have equal probability, and a window is centred
                on one of the value's places as far as the image reaches; unused for whole images.
        """
        shape = np.array(labels.shape)
        size = shape if self._roi is None else np.minimum(self._roi, shape)
        start = np.zeros_like(shape)
        if (size < shape).any():
            start = np.clip(_place(places, labels.shape, rng) - size // 2, 0, shape - size)
        if rng.random() >= self._share:
            inside = tuple(slice(a, b) for a, b in zip(start, start + size, strict=True))
            return image[:, *inside].float(), labels[inside]
        margin = np.ceil(REACH * size + (1 + SCALES[1]) * SHIFT).astype(int)
        low, high = start - margin, start + size + margin
        inside = tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))
        missing = np.stack([np.maximum(-low, 0), np.maximum(high - shape, 0)], 1)
        widths = [int(n) for before_after in missing[::-1] for n in before_after]
        self._turn.set_random_state(seed=int(rng.integers(2**31)))
        # Zeros are what MONAI fills in, so the image is shifted to have its padding there.
        shown = pad(image[:, *inside].float() - PADDING, widths)
        turned = self._turn(shown, spatial_size=size.tolist(), mode="bilinear")
        mask = self._turn(pad(labels[inside][None].float(), widths), size.tolist(), mode="nearest", randomize=False)
        return torch.as_tensor(turned) + PADDING, torch.as_tensor(mask)[0].to(torch.uint8)


def _place(places: Sequence[Integers], shape: Sequence[int], rng: np.random.Generator) -> Integers:
    """A random place of a random value that has any, or any voxel if none has, as an index along each axis."""
    known = [found for found in places if len(found)]
    if not known:
        return rng.integers(shape)
    found = known[int(rng.integers(len(known)))]
    return np.array(np.unravel_index(int(rng.choice(found)), tuple(shape)))
