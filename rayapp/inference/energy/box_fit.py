"""What a box was drawn around: the part of the image that fits it best, for when nothing was pointed at in it.

An annotator's box is tight: the structure reaches its sides and does not go on behind them. So for many ranges of
intensity the connected parts of the smoothed image are compared with the box: how much of it each spans, and which
share of it lies within. No place in the box has to be the structure, as the middle of a curved one is not. Pure
functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from rayapp.inference.arrays import Box, Floats
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Bools, Scan
from rayapp.inference.infer_task import Point

VOXELS = 30_000
"""In which the part is sought, at most."""
AROUND = 0.25
"""How far beyond the box is looked, as a share of its sides."""
SMOOTH_MM = 2.0
"""Standard deviation of the Gaussian that takes the noise away."""
CENTRES = 12
"""Middles of the ranges: as many quantiles of the box's intensities."""
WIDTHS = (0.15, 0.25, 0.4, 0.6)
"""How far each range reaches from its middle (most of the body spans 2)."""
LARGEST = 3
"""Parts of each range that are looked at."""
WITHIN = 2.0
"""Power of the share within the box: going on behind its sides counts for more than not reaching them."""
DEEP = 0.5
"""Inner voxels lie at least this share of the largest depth inside the part."""


def part(scan: Scan, box: tuple[Point, Point]) -> tuple[Bools, Bools]:
    """The part that fits the box best, and its inner voxels, both of the image's shape; maybe none."""
    low, high = np.array(box)
    more = np.ceil(AROUND * (high - low)).astype(int)
    region = Region.around(low - more, high + more, scan.shape, scan.spacing, most=VOXELS)
    steps, corner = np.array(region.steps), np.array(region.lower)
    i, j, k = (slice(a, b) for a, b in zip((low - corner) // steps, -((corner - high) // steps), strict=True))
    spacing = scan.spacing * steps
    image = ndimage.gaussian_filter(scan.view(region)[0], SMOOTH_MM / spacing, truncate=2.0)
    best = _best(image, (i, j, k))
    depth = ndimage.distance_transform_edt(np.pad(best, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    inner = best & (depth >= DEEP * depth.max())
    return _restored(best, region, scan), _restored(inner, region, scan)


def _restored(mask: Bools, region: Region, scan: Scan) -> Bools:
    """A mask of the region's blocks at the image's voxels."""
    for axis, step in enumerate(region.steps):
        mask = mask.repeat(step, axis)
    full = np.zeros(scan.shape, dtype=bool)
    i, j, k = (slice(n) for n in full[region.box].shape)
    full[region.box] = mask[i, j, k]
    return full


def _best(image: Floats, box: Box) -> Bools:
    """The part within the box that fits it best; nothing where no part is thick enough to be one."""
    best, found = 0.0, np.zeros(image.shape, dtype=bool)
    within = np.zeros(image.shape, dtype=bool)
    within[box] = True
    for mask in _ranges(image, box):
        parts, count = ndimage.label(mask)
        sizes, inside = (np.bincount(p.ravel(), minlength=count + 1) for p in (parts, parts[box]))
        inside[0] = 0
        for part in np.argsort(-inside)[:LARGEST]:
            if inside[part]:
                (spanned,) = ndimage.find_objects((parts[box] == part).view(np.uint8))
                span = np.prod([(s.stop - s.start) / n for s, n in zip(spanned, parts[box].shape, strict=True)])
                fit = float(span * (inside[part] / sizes[part]) ** WITHIN)
                if fit > best:
                    best, found = fit, (parts == part) & within
    return found


def _ranges(image: Floats, box: Box) -> Iterator[Bools]:
    """The voxels of each range of intensities, without what is only a voxel thin."""
    for centre in np.quantile(image[box], (np.arange(CENTRES) + 0.5) / CENTRES):
        for width in WIDTHS:
            yield ndimage.binary_opening(np.abs(image - centre) < width)
