"""Scan: an image as scribbles are worked on; Work: the box of it that one request needs, turned to its slices.

A `Scan` is made once per image and only read; a `Work` belongs to one request. Safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp import geometry
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Shape
from rayapp.inference.energy import likelihood
from rayapp.inference.energy.region import Region
from rayapp.inference.prompts.scribble_map import FOREGROUND, Marks

Bools = npt.NDArray[np.bool_]
Spacing = npt.NDArray[np.float64]

BUSY = 0.25
"""Share of the most stroked slice's strokes from which a slice counts as stroked."""
SAMPLE = 1 << 18
"""Voxels, about, from which an image's range of intensities is found."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The voxels (C, I, J, K) as the file has them, and each channel's range, which is brought to -1 to 1."""

    array: npt.NDArray[Any]
    spacing: Spacing
    ranges: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, volume: Volume) -> Scan:
        """Nothing is copied; the ranges come from a sample of the voxels."""
        ranges = tuple(_range(channel) for channel in volume.array)
        return cls(array=volume.array, spacing=geometry.spacing(volume.affine), ranges=ranges)

    @property
    def shape(self) -> Shape:
        """Voxels along i, j, k."""
        _, i, j, k = self.array.shape
        return i, j, k

    @property
    def nbytes(self) -> int:
        """Bytes of the image."""
        return int(self.array.nbytes)

    def view(self, region: Region) -> Floats:
        """Normalised intensities (C, *region.shape), clipped to -2 to 2."""
        channels = zip(self.array, self.ranges, strict=True)
        scaled = [(region.image(one) - low) * np.float32(2 / (high - low)) - 1 for one, (low, high) in channels]
        return np.clip(np.stack(scaled), -2, 2)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A region of a scan. Its arrays are turned so that the slices that were drawn on lie along the last axis."""

    region: Region
    axis: int
    image: Floats  # (C, A, B, K)
    marks: Marks  # (A, B, K)
    spacing: Spacing

    @classmethod
    def on(cls, scan: Scan, marks: Marks, region: Region, axis: int) -> Work:
        """`marks` and `axis` are the whole image's."""
        return cls(
            region=region,
            axis=axis,
            image=np.ascontiguousarray(np.moveaxis(scan.view(region), axis + 1, -1)),
            marks=np.ascontiguousarray(np.moveaxis(region.marks(marks), axis, -1)),
            spacing=(scan.spacing * region.steps)[[*across(axis), axis]],
        )

    @cached_property
    def features(self) -> Floats:
        """(A, B, K, F), as the likelihoods take them."""
        return likelihood.features(self.image, self.spacing)

    def slices(self) -> list[int]:
        """Those that were drawn on, not those that strokes across them merely pass."""
        counts = np.count_nonzero(self.marks == FOREGROUND, axis=(0, 1))
        return [int(k) for k in np.flatnonzero((counts > 0) & (counts >= BUSY * counts.max()))]

    def turned_back(self, mask: Bools) -> Bools:
        """On the region's own axes."""
        return np.ascontiguousarray(np.moveaxis(mask, -1, self.axis))


def across(axis: int) -> list[int]:
    """The two other axes."""
    return [n for n in range(3) if n != axis]


def extent(mask: npt.NDArray[Any]) -> tuple[list[int], list[int]]:
    """Lower and upper (exclusive) corner of what is not zero, of which there must be something."""
    ends = [np.flatnonzero(mask.any(axis=tuple(across(axis)))) for axis in range(3)]
    return [int(at[0]) for at in ends], [int(at[-1]) + 1 for at in ends]


def drawn_axis(marks: Marks, spacing: Sequence[float] | Spacing) -> int:
    """The axis across which foreground was drawn: fewest slices with strokes, then the largest spacing."""
    planes = [np.count_nonzero((marks == FOREGROUND).any(axis=tuple(across(axis)))) for axis in range(3)]
    return min(range(3), key=lambda axis: (planes[axis], -spacing[axis]))


def _range(channel: npt.NDArray[Any]) -> tuple[float, float]:
    """The 5th and 95th percentiles of the body, which is what is brighter than the mean."""
    step = max(1, int((channel.size / SAMPLE) ** (1 / 3)))
    values = np.nan_to_num(channel[::step, ::step, ::step].astype(np.float32), nan=0, posinf=0, neginf=0)
    body = values[values > values.mean()]
    low, high = (float(n) for n in np.percentile(body, (5, 95))) if body.size else (0.0, 0.0)
    return low, max(high, low + 1e-6)
