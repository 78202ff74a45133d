"""Placing a label map on its image's grid: the check that every label passes before it is stored."""

from __future__ import annotations

import dataclasses
from math import prod
from pathlib import Path

import numpy as np

from rayapp.errors import GridMismatch
from rayapp.geometry import mm_to_index, same_grid
from rayapp.imaging.reader import read_segmentation, split_ext
from rayapp.imaging.volume import Grid, Masks, Segmentation

RAW = ".bin"
"""Extension of a label map without a header, as OHIF 2 sends it."""


def read_label_map(path: Path, grid: Grid, *, max_bytes: int) -> Segmentation:
    """Read a label map, in any supported format or raw (`.bin`), that must lie on this grid.

    Raises:
        Unreadable: if it is not a valid label map.
        GridMismatch: if it lies on another grid.
        TooLarge: if its header gives more than `max_bytes`.
    """
    if path.name.lower().endswith(RAW):
        return raw_label_map(path, grid)
    return on_grid(read_segmentation(path, max_bytes=max_bytes), grid, split_ext(path.name)[1])


def raw_label_map(path: Path, grid: Grid) -> Segmentation:
    """Read a headerless file of one byte per voxel, i fastest. Raises GridMismatch if the number of voxels differs."""
    size = path.stat().st_size
    if size != prod(grid.shape):
        raise GridMismatch(f"a raw label of this image must have {_times(grid.shape)} voxels of one byte, not {size}")
    return Segmentation(array=np.fromfile(path, np.uint8).reshape(grid.shape, order="F"), affine=grid.affine)


def on_grid(label: Segmentation, grid: Grid, ext: str) -> Segmentation:
    """The label map, if it lies on this grid; a cropped `.seg.nrrd` is padded to it.

    Raises GridMismatch if it lies elsewhere.
    """
    if same_grid(label.shape, label.affine, grid.shape, grid.affine):
        return label
    if ext != ".seg.nrrd":
        problem = "but lies elsewhere in space" if label.shape == grid.shape else f"not {_times(label.shape)}"
        raise GridMismatch(f"the label must lie on its image's grid of {_times(grid.shape)} voxels, {problem}")
    return pad_to_grid(label, grid)


def pad_to_grid(segmentation: Segmentation, grid: Grid) -> Segmentation:
    """The label map on exactly this grid.

    A label map on the same grid gets the grid's own affine; one cropped to whole voxels of it (as 3D Slicer crops
    `.seg.nrrd`) is padded with background.

    Raises GridMismatch if its voxels do not coincide with the grid's, or a labelled one lies outside.
    """
    corner = np.rint(mm_to_index(grid.affine, segmentation.affine[:3, 3])).astype(int)
    moved = grid.affine.copy()
    moved[:3, 3] += grid.affine[:3, :3] @ corner
    if not same_grid(segmentation.shape, moved, segmentation.shape, segmentation.affine):
        raise GridMismatch("the label map's voxels do not coincide with its image's: export it on the image's grid")
    if segmentation.shape == grid.shape and not corner.any():
        return dataclasses.replace(segmentation, affine=grid.affine)
    array = segmentation.array
    low, high = np.maximum(corner, 0), np.minimum(corner + array.shape, grid.shape)
    inside = array[tuple(slice(a, max(a, b)) for a, b in zip(low - corner, high - corner, strict=True))]
    if np.count_nonzero(inside) != np.count_nonzero(array):
        raise GridMismatch(f"the label map of {segmentation.shape} voxels extends beyond its image of {grid.shape}")
    padded = np.zeros(grid.shape, array.dtype, order="F")
    if inside.size:
        padded[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside
    return dataclasses.replace(segmentation, array=padded, affine=grid.affine)


def pad_masks_to_grid(masks: Masks, grid: Grid) -> Masks:
    """Masks on exactly this grid, as `pad_to_grid` places a label map. Raises GridMismatch."""
    placed = [pad_to_grid(Segmentation(array=mask, affine=masks.affine), grid).array for mask in masks.array]
    return dataclasses.replace(masks, array=np.stack(placed), affine=grid.affine)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
