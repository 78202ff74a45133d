"""View: one of many ways to show a network the same image, undone exactly on what it answers. Pure functions.

Views are signed permutations of the axes, which move whole voxels, and small changes of intensity. Frame: the
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
"""Largest relative and absolute change of intensities, and the noise's deviation (the body spans 2): less than half of
what training varies them by, so that a trained network should not care."""


class Spatial(StrEnum):
    """Which axes views may exchange and flip."""

    NONE = "none"
    MIRROR = "mirror"  # left and right, as training does
    FLIPS = "flips"  # each axis
    ALL = "all"  # and axes along which the grid has as many voxels, so turns by 90 degrees, too


@dataclass(frozen=True, kw_only=True)
class View:
    """Axis n shows axis `order[n]` of the image, backwards where `flips[n]`; then intensities change.

    `middle` and `half` say where the body's intensities lie: from `middle - half` to `middle + half`, as `normalise`
    makes it unless they say otherwise. Padding stays padding. The noise is the same each time, by its `seed`.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    gain: float = 1.0
    shift: float = 0.0
    noise: float = 0.0
    seed: int = 0
    middle: float = 0.0
    half: float = 1.0

    def show(self, image: Tensor) -> Tensor:
        """An image (C, R, A, S) as this view has it."""
        seen = image.permute(0, *(axis + 1 for axis in self.order)).flip(self._flipped)
        if self.gain == 1 and not self.shift and not self.noise:
            return seen
        changed = (seen - self.middle) * self.gain + (self.middle + self.shift * self.half)
        if self.noise:
            generator = torch.Generator().manual_seed(self.seed)
            changed += self.noise * self.half * torch.randn(seen.shape, generator=generator).to(seen.device)
        low, high = self.middle + PADDING * self.half, self.middle - PADDING * self.half
        return torch.where(seen == low, seen, changed.clamp_(low, high))

    def undo(self, fields: Tensor) -> Tensor:
        """What was made of the view, (K, …), voxel by voxel on the image's own axes."""
        return fields.flip(self._flipped).permute(0, *(self.order.index(axis) + 1 for axis in range(3)))

    @property
    def _flipped(self) -> list[int]:
        return [axis + 1 for axis, flip in enumerate(self.flips) if flip]


def views(
    count: int,
    shape: Sequence[int],
    *,
    spatial: Spatial,
    seed: int,
    intensity: float = 1.0,
    body: tuple[float, float] = (0.0, 1.0),
) -> list[View]:
    """`count` views of an image of that shape, the first the image itself.

    Orientations come in random order, none twice before each came once; they keep the shape. `intensity` scales the
    changes of intensity; 0 leaves them out. `body` is `middle` and `half` of the views.
    """
    random = np.random.default_rng(seed)
    turns = _turns(tuple(shape), spatial)
    made = [View()]
    left: list[int] = []
    while len(made) < count:
        left = left or list(random.permutation(len(turns)))
        order, flips = turns[left.pop()]
        gain, shift = 1 + intensity * random.uniform(-GAIN, GAIN), intensity * random.uniform(-SHIFT, SHIFT)
        made.append(
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
    return made[:count]


def _turns(shape: tuple[int, ...], spatial: Spatial) -> list[tuple[tuple[int, int, int], tuple[bool, bool, bool]]]:
    orders = [(0, 1, 2)]
    if spatial is Spatial.ALL:
        orders = [p for p in itertools.permutations(range(3)) if tuple(shape[axis] for axis in p) == shape]  # type: ignore[misc]
    free = {Spatial.NONE: 0, Spatial.MIRROR: 1}.get(spatial, 3)
    flips = [(*some, *(False,) * (3 - free)) for some in itertools.product((False, True), repeat=free)]
    return [(order, flip) for order in orders for flip in flips]  # type: ignore[misc]
