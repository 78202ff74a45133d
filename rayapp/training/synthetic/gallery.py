"""Real images to learn from besides random scenes: annotated structures, and salient regions.

A gallery is a folder of files `NAME.npz` with `image` (i, j, k), `spacing` (3, mm) and, for annotated images, `mask`
(i, j, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.zoom.view import Source
from rayapp.training.synthetic.appearance import thick
from rayapp.training.synthetic.regions import Regions, regions
from rayapp.training.synthetic.shapes import Bools, Floats, Random, sides

LONGEST = 112
"""Largest number of voxels of an excerpt along each axis."""
DRAWN = 0.4
"""Share of cases on an annotated structure, if there is one."""
UNITS = -500
"""Images with values below this are taken for CT, in Hounsfield units."""

SEEN = 0.9
"""Least difference between a visible region and its surroundings, in their standard deviations."""


@dataclass(frozen=True)
class Excerpt:
    """A part of a real image, possibly downsampled.

    Attributes:
        image: (i, j, k).
        spacing: mm.
        regions: salient regions.
        drawn: the annotated structure; None if the part contains none.
    """

    image: Floats
    spacing: NDArray[np.float64]
    regions: Regions
    drawn: Bools | None

    @cached_property
    def source(self) -> Source:
        """The excerpt as the source of views."""
        return Source(self.image, self.spacing)

    def structure(self, random: Random) -> Bools | None:
        """A structure to learn from; None if none was found."""
        if self.drawn is not None and random.random() < DRAWN:
            return self.drawn
        for _ in range(20):
            region = self.regions.draw(random)
            if region is None:
                return None
            mask = ndimage.gaussian_filter(region.astype(np.float32), random.uniform(0.4, 0.9)) > 0.5
            if random.random() < 0.5:
                mask = ndimage.binary_fill_holes(mask)
            parts, _ = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            if sizes.max() < 40:
                continue
            mask = parts == sizes.argmax()
            if self._nothing(mask) or _contrast(self.image, mask) < SEEN:
                continue
            if random.random() >= min(0.9, 0.25 * sides(mask)):
                return np.asarray(mask)
        return None

    def _nothing(self, mask: Bools) -> bool:
        """True if a mask lies in air, or in black parts of the image."""
        low, high = np.quantile(self.image, [0.01, 0.95])
        return bool(self.image[mask].mean() < low + 0.08 * (high - low))


def excerpt(random: Random, path: Path) -> Excerpt:
    """A random excerpt of a gallery's image: any part, at any resolution, flipped at random, with some noise."""
    with np.load(path) as stored:
        image, spacing = stored["image"], stored["spacing"].astype(float)
        mask = stored["mask"] > 0 if "mask" in stored else None
    shape = np.array(image.shape)
    extent = shape * spacing
    size = np.exp(random.uniform(np.log(0.3 * extent.max()), np.log(extent.max())))
    length = np.minimum(extent, size * random.uniform(0.7, 1.3, 3))
    if mask is not None and mask.any() and random.random() < 0.6:
        inside = np.argwhere(mask)
        centre = (inside[int(random.integers(len(inside)))] + 0.5) * spacing
    else:
        centre = random.uniform(0, 1, 3) * extent
    low = np.clip(centre - length / 2, 0, extent - length)
    first = np.floor(low / spacing).astype(int)
    count = np.maximum(np.minimum(np.ceil(length / spacing).astype(int), shape - first), np.minimum(shape, 6))
    first = np.minimum(first, shape - count)
    finest = max(length.max() / LONGEST, spacing.min()) * np.exp(random.uniform(0, 0.6))
    factor = np.maximum(1, np.minimum(np.floor(finest / spacing + 0.3), count // 6)).astype(int)
    if random.random() < 0.25:  # thick slices
        axis = int(random.integers(3))
        factor[axis] = min(factor[axis] * int(random.integers(2, 6)), max(1, count[axis] // 6))
    part = tuple(slice(a, a + n) for a, n in zip(first, count, strict=True))
    i, j, k = factor.tolist()
    values = thick(image[part].astype(np.float32), (i, j, k))
    drawn = None if mask is None else thick(mask[part].astype(np.float32), (i, j, k)) > 0.5
    spacing = spacing * factor
    order = random.permutation(3)
    flips = tuple(slice(None, None, int(random.choice([-1, 1]))) for _ in range(3))
    values = np.ascontiguousarray(values.transpose(order)[flips])
    if drawn is not None:
        drawn = np.ascontiguousarray(drawn.transpose(order)[flips])
        drawn = drawn if drawn.sum() >= 40 else None
    window = values
    if values.min() < UNITS and random.random() < 0.75:  # else bone and air alone stand out
        window = np.clip(values, random.uniform(-250, -100), random.uniform(150, 400))
    found = regions(window, float(random.uniform(0.6, 1.4)))
    return Excerpt(_shown(random, values), spacing[order], found, drawn)


def _contrast(image: Floats, mask: Bools) -> float:
    """Contrast of a mask: the difference between its voxels next to the border and those outside, in standard
    deviations.
    """
    sides = ndimage.find_objects(mask.astype(np.uint8))[0]
    region = tuple(slice(max(0, side.start - 3), side.stop + 3) for side in sides)
    part, values = mask[region], image[region]
    inner = part & ~ndimage.binary_erosion(part, iterations=3)
    outer = ndimage.binary_dilation(part, iterations=3) & ~ndimage.binary_dilation(part)
    if not outer.any():
        return 0.0
    within, beyond = values[inner], values[outer]
    return float(abs(within.mean() - beyond.mean()) / max(np.sqrt((within.var() + beyond.var()) / 2), 1e-6))


def _shown(random: Random, values: Floats) -> Floats:
    """The image as another scanner or export might show it: clipped, inhomogeneous, noisy, with another contrast."""
    if values.min() < UNITS and random.random() < 0.5:
        values = np.clip(values, random.uniform(-500, -150), random.uniform(200, 600))
    low, high = np.quantile(values, [0.005, 0.995])
    scale = np.float32(max(high - low, 1e-6))
    if random.random() < 0.4:
        share = np.clip((values - low) / scale, 0, 1)
        values = low + scale * share ** np.float32(np.exp(random.uniform(-0.6, 0.6)))
    if random.random() < 0.3:
        values = ndimage.gaussian_filter(values, random.uniform(0.3, 0.9))
    if random.random() < 0.5:
        noise = random.standard_normal(values.shape, dtype=np.float32)
        values = values + scale * np.float32(random.uniform(0, 0.05)) * noise
    return np.ascontiguousarray(values, np.float32)
