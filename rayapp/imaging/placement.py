"""A label map on its image's grid: the check every label passes before it is stored."""

from __future__ import annotations

import dataclasses

import numpy as np

from rayapp.errors import GridMismatch
from rayapp.geometry import mm_to_index, same_grid
from rayapp.imaging.volume import Grid, Segmentation


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
