"""Needs: what a data set calls for, so many voxels being affordable at once. Pure functions.

All is along the network's axes: R, A, S, or the two of them that slices are not stacked along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rayapp.planner.overrides import Numbers
from rayapp.planner.survey import Survey

SMALL_WINDOWS = 32
"""Windows over an image that it may cost where structures are small."""
ACROSS = 5
"""Voxels that the smallest structure should measure across."""
AROUND = 1.5
"""Of the box around all structures, what a window needs to see at most."""
SMALLEST = 4
"""Voxels along an axis on the coarsest level."""
UNEVEN = 2.0
"""Times as coarse as the finest axis, from which on an axis is neither pooled nor convolved along."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the images call for, in mm along each axis: their voxels, their extent, the part that a window should see;
    and across the smallest structure (infinite if none is known). `windows` is how many over an image it may cost."""

    whole: bool
    windows: int
    finest: Numbers
    extent: Numbers
    around: Numbers
    smallest: float

    @classmethod
    def of(cls, survey: Survey, *, whole: bool, axes: int, windows: int) -> Self:
        """Of a survey, for networks that see images whole, or through windows."""
        shown = survey.axes(axes)
        extent = np.array(survey.extent)[shown]
        around = (
            extent if survey.foreground is None else np.minimum(extent, AROUND * np.array(survey.foreground)[shown])
        )
        volumes = [structure.volume for structure in survey.structures.values()]
        return cls(
            whole=whole,
            windows=windows,
            finest=np.array(survey.spacing)[shown],
            extent=extent,
            around=around,
            smallest=math.cbrt(1000 * min(volumes)) if volumes else math.inf,
        )

    def spacing(self, voxels: float) -> Numbers:
        """The finest that the budget allows; at most as fine as structures and images are."""
        if self.whole:
            return self._coarsened(voxels)
        usual, finer = (self._coarsened(voxels * windows) for windows in (self.windows, SMALL_WINDOWS))
        return np.clip(np.maximum(self.finest, self.smallest / ACROSS), finer, usual)

    def region(self, spacing: Numbers, voxels: float) -> Numbers:
        """The voxels to see at once: the whole image or else, as far as it is worth seeing, a cube's part of it."""
        if self.whole or (self.extent / spacing).prod() <= voxels:
            return np.maximum(1, np.rint(self.extent / spacing))
        low, high = 0.0, float(self.around.max())
        for _ in range(50):
            middle = (low + high) / 2
            fits = (np.minimum(self.around, middle) / spacing).prod() <= voxels
            low, high = (middle, high) if fits else (low, middle)
        return np.maximum(1, np.rint(np.minimum(self.around, low) / spacing))

    def _coarsened(self, voxels: float) -> Numbers:
        """Spacing at which the image has so many voxels: thick slices stay, other axes are brought up to one step."""
        low, high = float(self.finest.min()), float(self.extent.max())
        if (self.extent / self.finest).prod() <= voxels:
            return self.finest
        for _ in range(50):
            middle = math.sqrt(low * high)
            fits = (self.extent / np.maximum(self.finest, middle)).prod() <= voxels
            low, high = (low, middle) if fits else (middle, high)
        return np.maximum(self.finest, high)


def pooling(region: Numbers, spacing: Numbers, levels: int) -> list[tuple[int, ...]]:
    """Strides of each level: halve every axis that is long enough and not yet twice as coarse as the finest of them."""
    size, edge = region.copy(), spacing.copy()
    strides: list[tuple[int, ...]] = []
    while len(strides) < levels:
        long = size >= 2 * SMALLEST
        if not long.any():
            break
        halve = long & (edge < UNEVEN * edge[long].min())
        factor = np.where(halve, 2, 1)
        size, edge = size / factor, edge * factor
        strides.append(tuple(int(n) for n in factor))
    return strides or [(1,) * len(region)]


def kernels(spacing: Numbers, strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Of each level's convolutions, the finest first: 3 along the axes that are about as fine as the finest, else 1."""
    edges = spacing * np.cumprod([(1,) * len(spacing), *strides], axis=0)
    return [tuple(int(n) for n in np.where(edge < UNEVEN * edge.min(), 3, 1)) for edge in edges]


def rounded(region: Numbers, divisor: Sequence[int], *, most: float) -> tuple[int, ...]:
    """Sizes that are multiples of `divisor`, about the region's; where they would come to more than `most` voxels, less
    along the axes that were rounded up furthest."""
    parts = np.maximum(1, np.ceil(region / np.array(divisor) - 0.01))
    while (parts * divisor).prod() > most and parts.max() > 1:
        parts[int(np.where(parts > 1, parts * divisor / region, 0).argmax())] -= 1
    return tuple(int(n) for n in parts * divisor)
