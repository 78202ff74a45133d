"""A label map on its image's grid: the check every label passes before it is stored."""

from __future__ import annotations

import dataclasses
from math import prod
from pathlib import Path

import numpy as np

from rayapp.errors import GridMismatch
from rayapp.geometry import mm_to_index, same_grid
from rayapp.imaging.reader import read_segmentation, split_ext
from rayapp.imaging.volume import Grid, Segmentation

RAW = ".bin"
"""What OHIF 2 calls a label map without a header."""


def read_label_map(path: Path, grid: Grid, *, max_bytes: int) -> Segmentation:
    """An uploaded label map, which must lie on this grid: in a format read here, or raw (`.bin`).

    Raises:
        Unreadable: if it is not a whole label map.
        GridMismatch: if it lies elsewhere.
        TooLarge: if its header announces more than `max_bytes`.
    """
    if path.name.lower().endswith(RAW):
        return raw_label_map(path, grid)
    return on_grid(read_segmentation(path, max_bytes=max_bytes), grid, split_ext(path.name)[1])


def raw_label_map(path: Path, grid: Grid) -> Segmentation:
    """Voxels of one byte, i fastest, and nothing else. Raises GridMismatch for another number of them."""
    size = path.stat().st_size
    if size != prod(grid.shape):
        raise GridMismatch(f"the label must have {_times(grid.shape)} voxels of one byte, not {size}")
    return Segmentation(array=np.fromfile(path, np.uint8).reshape(grid.shape, order="F"), affine=grid.affine)


def on_grid(label: Segmentation, grid: Grid, ext: str) -> Segmentation:
    """The same label map if it lies on this grid. Slicer crops a `.seg.nrrd` to its segments: put back onto the whole.

    Raises GridMismatch if it lies elsewhere.
    """
    if same_grid(label.shape, label.affine, grid.shape, grid.affine):
        return label
    if ext != ".seg.nrrd":
        where = "but lies elsewhere in space" if label.shape == grid.shape else f"not {_times(label.shape)}"
        raise GridMismatch(f"the label must lie on its image's grid of {_times(grid.shape)} voxels, {where}")
    return placed(label, grid)


def placed(segmentation: Segmentation, grid: Grid) -> Segmentation:
    """The label map on exactly this grid.

    A file of the same grid comes back with the grid's own affine; one that is cropped to whole voxels of it (as 3D
    Slicer crops `.seg.nrrd`) is padded with background.

    Raises GridMismatch if its voxels are not voxels of the grid, or if a labelled one lies outside.
    """
    corner = np.rint(mm_to_index(grid.affine, segmentation.affine[:3, 3])).astype(int)
    moved = grid.affine.copy()
    moved[:3, 3] += grid.affine[:3, :3] @ corner
    if not same_grid(segmentation.shape, moved, segmentation.shape, segmentation.affine):
        raise GridMismatch("the label map's voxels are not those of its image: export it on the image's own grid")
    if segmentation.shape == grid.shape and not corner.any():
        return dataclasses.replace(segmentation, affine=grid.affine)
    array = segmentation.array
    low, high = np.maximum(corner, 0), np.minimum(corner + array.shape, grid.shape)
    inside = array[tuple(slice(a, max(a, b)) for a, b in zip(low - corner, high - corner, strict=True))]
    if np.count_nonzero(inside) != np.count_nonzero(array):
        raise GridMismatch(f"the label map of {segmentation.shape} voxels reaches beyond its image of {grid.shape}")
    whole = np.zeros(grid.shape, array.dtype, order="F")
    if inside.size:
        whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside
    return dataclasses.replace(segmentation, array=whole, affine=grid.affine)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
