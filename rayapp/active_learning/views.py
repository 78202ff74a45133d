"""Views of an image for test-time augmentation, inverted exactly on the network's predictions. Pure functions.

A view permutes and flips axes, which moves whole voxels, and changes intensities slightly. All arrays are on the
network's grid, (R, A, S).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from rayapp.inference.network.normalisation import PADDING

GAIN, SHIFT, NOISE = 0.1, 0.1, 0.05
"""Largest gain and shift of intensities, and the noise's standard deviation, where the body's intensities span 2. They
are less than half of the augmentation in training, so that a trained network should be robust to them."""


class Spatial(StrEnum):
    """The axes that views may permute and flip."""

    NONE = "none"
    MIRROR = "mirror"  # flip left and right, as in training
    FLIPS = "flips"  # flip every axis
    ALL = "all"  # flip every axis and permute axes of equal size, which includes rotations by 90 degrees


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of an image: a permutation of axes, flips, and a change of intensities. Padding stays padding.

    Attributes:
        order: Axis n of the view is axis `order[n]` of the image.
        flips: Axis n of the view is reversed where `flips[n]`.
        gain: Factor of intensities about `middle`.
        shift: Shift of intensities, in units of `half`.
        noise: Standard deviation of Gaussian noise, in units of `half`.
        seed: Seed of the noise.
        middle: Middle of the body's intensities; by default that of images that `normalise` made.
        half: Half the range of the body's intensities.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    gain: float = 1.0
    shift: float = 0.0
    noise: float = 0.0
    seed: int = 0
    middle: float = 0.0
    half: float = 1.0

    def apply(self, image: Tensor) -> Tensor:
        """The view of an image (C, R, A, S)."""
        oriented = image.permute(0, *(axis + 1 for axis in self.order)).flip(self._flipped)
        if self.gain == 1 and not self.shift and not self.noise:
            return oriented
        changed = (oriented - self.middle) * self.gain + (self.middle + self.shift * self.half)
        if self.noise:
            generator = torch.Generator().manual_seed(self.seed)
            changed += self.noise * self.half * torch.randn(oriented.shape, generator=generator).to(oriented.device)
        low, high = self.middle + PADDING * self.half, self.middle - PADDING * self.half
        return torch.where(oriented == low, oriented, changed.clamp_(low, high))

    def invert(self, fields: Tensor) -> Tensor:
        """Fields (K, …) on the view's axes, moved voxel by voxel to the image's axes."""
        return fields.flip(self._flipped).permute(0, *(self.order.index(axis) + 1 for axis in range(3)))

    @property
    def _flipped(self) -> list[int]:
        return [axis + 1 for axis, flip in enumerate(self.flips) if flip]


def random_views(
    count: int,
    shape: Sequence[int],
    *,
    spatial: Spatial,
    seed: int,
    intensity: float = 1.0,
    body: tuple[float, float] = (0.0, 1.0),
) -> list[View]:
    """Random views of an image; the first is the image itself.

    Orientations come in random order, and none repeats before all have occurred.

    Args:
        count: Number of views.
        shape: The image's shape, which all views keep.
        spatial: The axes that may be permuted and flipped.
        seed: Seed of the views.
        intensity: Factor of the changes of intensity; 0 for none.
        body: Middle and half the range of the body's intensities.
    """
    random = np.random.default_rng(seed)
    orientations = _orientations(tuple(shape), spatial)
    views = [View()]
    remaining: list[int] = []
    while len(views) < count:
        remaining = remaining or list(random.permutation(len(orientations)))
        order, flips = orientations[remaining.pop()]
        gain, shift = 1 + intensity * random.uniform(-GAIN, GAIN), intensity * random.uniform(-SHIFT, SHIFT)
        views.append(
            View(
                order=order,
                flips=flips,
                gain=float(gain),
                shift=float(shift),
                noise=intensity * NOISE,
                seed=int(random.integers(1 << 31)),
                middle=body[0],
                half=body[1],
            )
        )
    return views[:count]


def _orientations(
    shape: tuple[int, ...], spatial: Spatial
) -> list[tuple[tuple[int, int, int], tuple[bool, bool, bool]]]:
    """All orders and flips that are allowed and keep the shape."""
    orders = [(0, 1, 2)]
    if spatial is Spatial.ALL:
        orders = [p for p in itertools.permutations(range(3)) if tuple(shape[axis] for axis in p) == shape]  # type: ignore[misc]
    free = {Spatial.NONE: 0, Spatial.MIRROR: 1}.get(spatial, 3)
    flips = [(*some, *(False,) * (3 - free)) for some in itertools.product((False, True), repeat=free)]
    return [(order, flip) for order in orders for flip in flips]  # type: ignore[misc]
