"""Needs: the spacing and region that a data set calls for within a budget of voxels. Pure functions.

All quantities are along the network's axes: R, A, S or, for networks of slices, the two of them in the slice plane.
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
"""Maximum number of windows per image where structures are small."""
VOXELS_ACROSS = 5
"""Number of voxels across the smallest structure."""
CONTEXT = 1.5
"""Size of a useful window, as a multiple of the box around all structures."""
MIN_SIZE = 4
"""Minimum number of voxels along an axis at the coarsest level."""
MAX_ANISOTROPY = 2.0
"""Ratio to the finest axis from which an axis is neither pooled nor convolved along."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Requirements of a data set, along each axis.

    Attributes:
        whole: True for networks that see images whole, False for sliding windows.
        windows: acceptable number of windows per image.
        finest: spacing of the images, mm.
        extent: size of the images, mm.
        around: part of the image that a window should see, mm.
        window: edge of a cube with the least number of voxels that a window should have, whatever the size of the
            structures, since a lesion is recognised by its surroundings.
        smallest: diameter of the smallest structure, mm; infinite if none is known.
    """

    whole: bool
    windows: int
    finest: Numbers
    extent: Numbers
    around: Numbers
    window: int
    smallest: float

    @classmethod
    def of(cls, survey: Survey, *, whole: bool, axes: int, windows: int, window: int) -> Self:
        """The needs of a surveyed data set.

        Args:
            survey: the survey.
            whole: see `Needs`.
            axes: 3, or 2 for networks of slices.
            windows, window: see `Needs`.
        """
        kept = survey.axes(axes)
        extent = np.array(survey.extent)[kept]
        around = (
            extent if survey.foreground is None else np.minimum(extent, CONTEXT * np.array(survey.foreground)[kept])
        )
        volumes = [structure.volume for structure in survey.structures.values()]
        return cls(
            whole=whole,
            windows=windows,
            finest=np.array(survey.spacing)[kept],
            extent=extent,
            around=around,
            window=window,
            smallest=math.cbrt(1000 * min(volumes)) if volumes else math.inf,
        )

    def spacing(self, voxels: float) -> Numbers:
        """The finest spacing that the budget of voxels allows, but no finer than the structures and images warrant."""
        if self.whole:
            return self._coarsened(voxels)
        usual, finer = (self._coarsened(voxels * windows) for windows in (self.windows, SMALL_WINDOWS))
        return np.clip(np.maximum(self.finest, self.smallest / VOXELS_ACROSS), finer, usual)

    def region(self, spacing: Numbers, voxels: float) -> Numbers:
        """The region to see at once, in voxels: the whole image if it fits, else a part as close to a cube as is
        useful.
        """
        if self.whole or (self.extent / spacing).prod() <= voxels:
            return np.maximum(1, np.rint(self.extent / spacing))
        worth = np.maximum(self.around, _cube(self.extent, spacing, self.window ** len(spacing)))
        return np.maximum(1, np.rint(_cube(worth, spacing, voxels) / spacing))

    def _coarsened(self, voxels: float) -> Numbers:
        """The spacing at which the image has that many voxels: thick slices are kept, other axes are coarsened to one
        spacing.
        """
        low, high = float(self.finest.min()), float(self.extent.max())
        if (self.extent / self.finest).prod() <= voxels:
            return self.finest
        for _ in range(50):
            middle = math.sqrt(low * high)
            fits = (self.extent / np.maximum(self.finest, middle)).prod() <= voxels
            low, high = (low, middle) if fits else (middle, high)
        return np.maximum(self.finest, high)


def _cube(most: Numbers, spacing: Numbers, voxels: float) -> Numbers:
    """The size in mm of the largest part with that many voxels, as close to a cube as `most` (mm) allows."""
    low, high = 0.0, float(most.max())
    for _ in range(50):
        middle = (low + high) / 2
        fits = (np.minimum(most, middle) / spacing).prod() <= voxels
        low, high = (middle, high) if fits else (low, middle)
    return np.minimum(most, low)


def pooling(region: Numbers, spacing: Numbers, levels: int) -> list[tuple[int, ...]]:
    """Strides of each level: an axis is halved if it is long enough and less than twice as coarse as the finest one."""
    size, edge = region.copy(), spacing.copy()
    strides: list[tuple[int, ...]] = []
    while len(strides) < levels:
        long = size >= 2 * MIN_SIZE
        if not long.any():
            break
        halve = long & (edge < MAX_ANISOTROPY * edge[long].min())
        factor = np.where(halve, 2, 1)
        size, edge = size / factor, edge * factor
        strides.append(tuple(int(n) for n in factor))
    return strides or [(1,) * len(region)]


def kernels(spacing: Numbers, strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Kernel sizes of each level, the finest first: 3 along axes about as fine as the finest, else 1."""
    edges = spacing * np.cumprod([(1,) * len(spacing), *strides], axis=0)
    return [tuple(int(n) for n in np.where(edge < MAX_ANISOTROPY * edge.min(), 3, 1)) for edge in edges]


def rounded(region: Numbers, divisor: Sequence[int], *, most: float) -> tuple[int, ...]:
    """Sizes near the region's that are multiples of `divisor`.

    If they come to more than `most` voxels, the axes that were rounded up furthest are reduced.
    """
    parts = np.maximum(1, np.ceil(region / np.array(divisor) - 0.01))
    while (parts * divisor).prod() > most and parts.max() > 1:
        parts[int(np.where(parts > 1, parts * divisor / region, 0).argmax())] -= 1
    return tuple(int(n) for n in parts * divisor)
