"""Reading image and label files whatever their format: by the name's extension, or a folder of DICOM."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from rayapp.errors import Unreadable
from rayapp.imaging import dicom, nifti, nrrd
from rayapp.imaging.volume import Grid, Segmentation, Volume

_MODULES: dict[str, ModuleType] = {".nii.gz": nifti, ".seg.nrrd": nrrd, ".nii": nifti, ".nrrd": nrrd}
EXTENSIONS = tuple(_MODULES)
"""Longest first, so that the first that fits is the whole extension."""
_MAX_LABEL = 65535


def split_ext(filename: str) -> tuple[str, str]:
    """`("spleen_10", ".nii.gz")` of a file name, or of a whole client path, also a Windows one.

    Raises Unreadable for other extensions.
    """
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    for ext in EXTENSIONS:
        if name.lower().endswith(ext) and len(name) > len(ext):
            return name[: -len(ext)], ext
    raise Unreadable(f"{name[-60:]!r} is none of the formats read here: {', '.join(EXTENSIONS)}")


def _module(path: Path) -> ModuleType:
    return dicom if path.is_dir() else _MODULES[split_ext(path.name)[1]]


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The image in a file or in a DICOM folder.

    Raises:
        Unreadable: if it is damaged, truncated or not an image.
        TooLarge: if its header announces more than `max_bytes` of voxels.
    """
    volume: Volume = _module(path).read_volume(path, max_bytes=max_bytes)
    return volume


def read_grid(path: Path) -> Grid:
    """The grid of an image or label file, without its voxels. Raises Unreadable."""
    grid: Grid = _module(path).read_grid(path)
    return grid


def read_segmentation(path: Path, *, max_bytes: int) -> Segmentation:
    """A label map. Values must be whole numbers from 0 to 65535, in whatever type the file holds them.

    Raises:
        Unreadable: if it is damaged, truncated or not a label map.
        TooLarge: if its header announces more than `max_bytes` of voxels.
    """
    if not path.is_dir() and _MODULES[split_ext(path.name)[1]] is nrrd:
        array, affine, names = nrrd.read_segmentation(path, max_bytes=max_bytes)
    else:
        volume = read_volume(path, max_bytes=max_bytes)
        if volume.channels != 1:
            raise Unreadable(f"a label map has one channel, not {volume.channels}")
        array, affine, names = volume.array[0], volume.affine, {}
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > _MAX_LABEL:
        raise Unreadable(f"label values go from 0 to {_MAX_LABEL}, not from {low} to {high}")
    whole = array.astype(np.uint8 if high < 256 else np.uint16, copy=False)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise Unreadable("label values must be whole numbers")
    return Segmentation(array=whole, affine=affine, names=names)
