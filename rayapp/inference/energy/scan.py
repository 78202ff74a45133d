"""An image prepared for segmentation from prompts alone, and the region of it that one request works on.

A `Scan` is made once per image and read-only; a `SlicedRegion` belongs to one request. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp import geometry
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools, Floats, Shape, Spacing
from rayapp.inference.energy import likelihood
from rayapp.inference.energy.region import Region
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

STROKED_SHARE = 0.25
"""Least number of foreground voxels in a slice that counts as drawn on, relative to the slice with the most."""
MAX_CHANNELS = 8
"""Largest number of channels that are segmented together; an image with more is taken for a series of images."""
RANGE_SAMPLES = 1 << 18
"""Approximate number of voxels from which an image's intensity range is estimated."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An image with its intensity ranges.

    Attributes:
        array: The source's voxels, (C, I, J, K).
        spacing: mm along i, j, k.
        ranges: For each channel, the intensities that are normalised to -1 and 1.
        remarks: Remarks on the image, for the `params` of an answer.
    """

    array: npt.NDArray[Any]
    spacing: Spacing
    ranges: tuple[tuple[float, float], ...]
    remarks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, volume: Volume) -> Scan:
        """A scan that shares the volume's voxels; the ranges are estimated from a sample of them.

        A series of images, such as time points, is represented by the first one, which viewers show.
        """
        array, remarks = volume.array, {}
        if volume.channels > MAX_CHANNELS:
            array = array[:1]
            remarks = {"channels": f"the first of {volume.channels} images of a series was segmented"}
        ranges = tuple(_intensity_range(channel) for channel in array)
        return cls(array=array, spacing=geometry.spacing(volume.affine), ranges=ranges, remarks=remarks)

    @property
    def shape(self) -> Shape:
        """Voxels along i, j, k."""
        _, i, j, k = self.array.shape
        return i, j, k

    @property
    def nbytes(self) -> int:
        """Memory of the image in bytes."""
        return int(self.array.nbytes)

    def view(self, region: Region) -> Floats:
        """Normalised intensities of a region, (C, *region.shape), clipped to -2 and 2."""
        channels = zip(self.array, self.ranges, strict=True)
        scaled = [(region.image(one) - low) * np.float32(2 / (high - low)) - 1 for one, (low, high) in channels]
        return np.clip(np.stack(scaled), -2, 2)


@dataclass(frozen=True, kw_only=True)
class SlicedRegion:
    """A region of a scan, with the axis across the drawn slices moved last.

    Attributes:
        region: The region.
        axis: The source axis across the drawn slices.
        image: Normalised intensities, (C, A, B, K).
        marks: Scribble map, (A, B, K).
        spacing: mm along A, B, K.
    """

    region: Region
    axis: int
    image: Floats
    marks: Marks
    spacing: Spacing

    @classmethod
    def of(cls, scan: Scan, marks: SparseLabels, region: Region, axis: int) -> SlicedRegion:
        """Cut a region out of a scan.

        Args:
            scan: The image.
            marks: Scribble map of the image.
            region: The region.
            axis: The source axis across the drawn slices.
        """
        return cls(
            region=region,
            axis=axis,
            image=np.ascontiguousarray(np.moveaxis(scan.view(region), axis + 1, -1)),
            marks=np.ascontiguousarray(np.moveaxis(region.marks(marks), axis, -1)),
            spacing=(scan.spacing * region.steps)[[*other_axes(axis), axis]],
        )

    @cached_property
    def features(self) -> Floats:
        """Features for the appearance models, (A, B, K, F)."""
        return likelihood.features(self.image, self.spacing)

    def drawn_slices(self) -> list[int]:
        """Indices of slices that were drawn on, without those that strokes of other slices only cross."""
        counts = np.count_nonzero(self.marks == FOREGROUND, axis=(0, 1))
        return [int(k) for k in np.flatnonzero((counts > 0) & (counts >= STROKED_SHARE * counts.max()))]

    def to_region_axes(self, mask: Bools) -> Bools:
        """A mask (A, B, K) with its axes in the source's order, shape `region.shape`."""
        return np.ascontiguousarray(np.moveaxis(mask, -1, self.axis))


def other_axes(axis: int) -> list[int]:
    """The two axes other than `axis`."""
    return [n for n in range(3) if n != axis]


def extent(mask: npt.NDArray[Any]) -> tuple[list[int], list[int]]:
    """Inclusive lower and exclusive upper corner of the non-zero voxels, of which there must be at least one."""
    occupied = [np.flatnonzero(mask.any(axis=tuple(other_axes(axis)))) for axis in range(3)]
    return [int(indices[0]) for indices in occupied], [int(indices[-1]) + 1 for indices in occupied]


def drawing_axis(marks: SparseLabels, spacing: Spacing) -> int:
    """The axis across the drawn slices: that with the fewest drawn slices; of equals, that with the largest spacing.

    Background strokes count too: those on a thin structure cover few voxels, which lie on few slices across any axis.
    """
    drawn = [marks.part == mark for mark in (FOREGROUND, BACKGROUND)]
    planes = [sum(np.count_nonzero(one.any(axis=tuple(other_axes(axis)))) for one in drawn) for axis in range(3)]
    return min(range(3), key=lambda axis: (planes[axis], -spacing[axis]))


def _intensity_range(channel: npt.NDArray[Any]) -> tuple[float, float]:
    """The 5th and 95th percentiles of the body, which is brighter than the image's mean."""
    step = max(1, int((channel.size / RANGE_SAMPLES) ** (1 / 3)))
    values = channel[::step, ::step, ::step].astype(np.float32)
    values = values[np.isfinite(values)]
    body = values[values > values.mean()] if values.size else values
    low, high = (float(n) for n in np.percentile(body, (5, 95))) if body.size else (0.0, 0.0)
    return low, max(high, low + 1e-6)
