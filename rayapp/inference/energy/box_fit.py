"""Segmentation of the structure that a box was drawn around, without any other prompt.

An annotator's box is tight: the structure touches its sides and does not continue beyond them. So for many intensity
ranges, the connected components of the smoothed image are scored by how much of the box they span and by the share of
them that lies within it. No position in the box has to belong to the structure; the centre of a curved structure, for
example, does not. Pure functions, thread-safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from rayapp.inference.arrays import Bools, Box, Floats
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan
from rayapp.inference.energy.smoothing import gaussian
from rayapp.inference.infer_task import Point

MAX_VOXELS = 30_000
"""Largest number of (averaged) voxels in which the structure is searched."""
CONTEXT = 0.25
"""Context around the box that is searched too, as a share of the box's sides."""
SMOOTH_MM = 2.0
"""Standard deviation, in mm, of the Gaussian that removes noise."""
CENTRES = 12
"""Number of intensity ranges' centres, which are quantiles of the box's intensities."""
WIDTHS = (0.15, 0.25, 0.4, 0.6)
"""Half-widths of the intensity ranges, in normalised intensity (most of the body spans 2)."""
CANDIDATES = 3
"""Number of components that are scored for each range, the largest first."""
CONTAINMENT_POWER = 2.0
"""Exponent of the share within the box: leaking out of the box is worse than not spanning it."""
CORE_DEPTH = 0.5
"""Least depth of core voxels, relative to the largest depth in the structure."""


def fit_box(scan: Scan, box: tuple[Point, Point]) -> tuple[Bools, Bools]:
    """Find the structure that fits a box best.

    Args:
        scan: The image.
        box: Inclusive lower and exclusive upper corner, in source voxels.

    Returns:
        Mask of the structure and mask of its core, both of the box's voxels; empty if nothing fits.
    """
    low, high = np.array(box)
    context = np.where(high - low > 1, np.ceil(CONTEXT * (high - low)), 0).astype(int)  # a slice is seen by itself
    region = Region.around(low - context, high + context, scan.shape, scan.spacing, max_voxels=MAX_VOXELS)
    steps, corner = np.array(region.steps), np.array(region.lower)
    i, j, k = (slice(a, b) for a, b in zip((low - corner) // steps, -((corner - high) // steps), strict=True))
    spacing = scan.spacing * steps
    channels = [gaussian(channel, SMOOTH_MM, spacing, truncate=2.0) for channel in scan.view(region)]
    structure = _best_component(channels, (i, j, k))
    depth = ndimage.distance_transform_edt(np.pad(structure, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    core = structure & (depth >= CORE_DEPTH * depth.max())
    return _in_box(structure, region, box), _in_box(core, region, box)


def _in_box(mask: Bools, region: Region, box: tuple[Point, Point]) -> Bools:
    """The voxels of a box in a mask of a region's blocks."""
    for axis, (first, last) in enumerate(zip(*box, strict=True)):
        mask = mask.take((np.arange(first, last) - region.lower[axis]) // region.steps[axis], axis)
    return mask


def _best_component(channels: Sequence[Floats], box: Box) -> Bools:
    """Mask, within the box, of the component in any channel that fits it best; empty if none is thick enough."""
    best_fit, best = 0.0, np.zeros(channels[0].shape, dtype=bool)
    within = np.zeros(best.shape, dtype=bool)
    within[box] = True
    for mask in itertools.chain.from_iterable(_intensity_ranges(channel, box) for channel in channels):
        components, count = ndimage.label(mask)
        sizes, inside = (np.bincount(c.ravel(), minlength=count + 1) for c in (components, components[box]))
        inside[0] = 0
        for component in np.argsort(-inside)[:CANDIDATES]:
            if inside[component]:
                (bounds,) = ndimage.find_objects((components[box] == component).view(np.uint8))
                span = np.prod([(s.stop - s.start) / n for s, n in zip(bounds, components[box].shape, strict=True)])
                fit = float(span * (inside[component] / sizes[component]) ** CONTAINMENT_POWER)
                if fit > best_fit:
                    best_fit, best = fit, (components == component) & within
    return best


def _intensity_ranges(image: Floats, box: Box) -> Iterator[Bools]:
    """The voxels in each intensity range, after a morphological opening that removes structures one voxel thin.

    The image is extended by its outermost voxels, so that structures are not thin at its border, nor in a single slice.
    """
    for centre in np.quantile(image[box], (np.arange(CENTRES) + 0.5) / CENTRES):
        for width in WIDTHS:
            within = np.pad(np.abs(image - centre) < width, 1, mode="edge")
            yield ndimage.binary_opening(within)[1:-1, 1:-1, 1:-1]
