"""Design: what a network sees and is, chosen from the data by simple rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rayapp.geometry import Orientation, spacing
from rayapp.imaging.volume import Grid
from rayapp.inference.network import divisor_of

CPU_VOXELS, GPU_VOXELS = 96**3, 144**3
"""Voxels that a network sees at once, at most, on a CPU and on a GPU."""
CPU_PIXELS, GPU_PIXELS = 256**2, 512**2
"""The same of networks that see slices."""
CPU_WIDTH, GPU_WIDTH = 16, 32
"""Channels of the network's finest level."""
MAX_WIDTH = 256
COARSEST = 4
"""Voxels along each axis of the coarsest level, at least."""
WINDOWS = 8
"""Windows that a median image may have before its voxels are made larger."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The part of a card that must stand before training: as `SegmentationTask` takes it.

    `spacing` in mm and `roi_size` in voxels, along R, A, S; along the plane's two axes for networks of slices. One
    number for the spacing is the same along all. `channels` are those of an image, without guidance.
    """

    labels: Mapping[str, int]
    spacing: float | tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    channels: int

    @classmethod
    def of(cls, card: Mapping[str, Any], *, guidance: int) -> Self:
        """As a card states it; `guidance` is how many of the network's channels are no image's."""
        return cls(
            labels=card["labels"],
            spacing=spacing_of(card["spacing"]),
            roi_size=tuple(int(n) for n in card["roi_size"]),
            network=card["network"],
            channels=int(card["network"]["in_channels"]) - guidance,
        )

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the network's grids are multiples of."""
        return divisor_of(self.network)

    def card(self) -> dict[str, Any]:
        """Its part of a card."""
        return {
            "labels": dict(self.labels),
            "network": dict(self.network),
            "spacing": list(self.spacing) if isinstance(self.spacing, tuple) else self.spacing,
            "roi_size": list(self.roi_size),
        }


def scale(grids: Sequence[Grid], *, whole: bool, voxels: int) -> tuple[float, tuple[int, int, int]]:
    """The spacing (mm) and the voxels along R, A, S that a network sees at once, for images like these.

    The spacing is that of the median image's voxels (the side of a cube as large), coarser where the images would
    otherwise be too many voxels: for networks that see an image whole, more than `voxels`; else more than `WINDOWS`
    windows of them.
    """
    edges = np.array([spacing(grid.affine) for grid in grids])
    extents = np.array([_turned(grid) for grid in grids])
    step = float(np.median(np.cbrt(edges.prod(axis=1))))
    extent = extents.max(axis=0) if whole else np.median(extents, axis=0)
    most = voxels if whole else voxels * WINDOWS
    step *= max(1.0, math.cbrt(float((extent / step).prod()) / most))
    step = max(round(step, 2), 0.01)
    size = np.maximum(1, np.rint((extents.max(axis=0)) / step))
    while size.prod() > voxels:
        size[int(size.argmax())] *= 0.9
    i, j, k = (int(n) for n in np.ceil(size))
    return step, (i, j, k)


def slice_scale(grids: Sequence[Grid], *, pixels: int) -> tuple[float, tuple[int, int]]:
    """The same for networks that see one slice, whole: its pixels' spacing and how many there are along each side."""
    edges = np.array([spacing(grid.affine)[:2] for grid in grids])
    extents = edges * np.array([grid.shape[:2] for grid in grids])
    step = float(np.median(np.sqrt(edges.prod(axis=1))))
    side = extents.max() / step
    step = max(round(step * max(1.0, side / math.sqrt(pixels)), 2), 0.01)
    side = math.ceil(extents.max() / step)
    return step, (side, side)


def unet(in_channels: int, out_channels: int, roi_size: Sequence[int], *, width: int) -> dict[str, Any]:
    """A residual U-Net (Kerfoot et al., 2019), as deep as `roi_size` allows and four levels at most.

    Its first convolution halves the image, which makes a step three to four times cheaper than one of a U-Net that
    works on every voxel first; on hippocampi it also learns faster.
    """
    levels = min(4, max(1, int(math.log2(max(2, min(roi_size) / COARSEST)))))
    return {
        "name": "UNet",
        "spatial_dims": len(roi_size),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": [min(width * 2**level, MAX_WIDTH) for level in range(levels + 1)],
        "strides": [2] * levels,
        "num_res_units": 2,
    }


def spacing_of(stated: Any) -> float | tuple[float, ...]:
    """A number, or a list of them as tuple. Raises TypeError, ValueError."""
    return tuple(float(mm) for mm in stated) if isinstance(stated, (list, tuple)) else float(stated)


def rounded(roi_size: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Sizes a network takes, none smaller."""
    return tuple(-(-n // multiple) * multiple for n, multiple in zip(roi_size, divisor, strict=True))


def _turned(grid: Grid) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Extents (mm) along R, A, S."""
    extents: np.ndarray[Any, np.dtype[np.float64]] = np.array(grid.shape) * spacing(grid.affine)
    return extents[list(Orientation.of(grid.affine).axes)]
