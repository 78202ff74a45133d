"""Reading image and label files whatever their format: by the name's extension, or a folder of DICOM.

Everything here may run in several threads at once. What is read has memory of its own, i fastest.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.imaging import dicom, nifti, nrrd
from rayapp.imaging.volume import Grid, Segmentation, Volume

_MODULES: dict[str, ModuleType] = {".nii.gz": nifti, ".seg.nrrd": nrrd, ".nii": nifti, ".nrrd": nrrd}
EXTENSIONS = tuple(_MODULES)
"""Longer ones first, so that the first that fits is the whole extension."""
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


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The image in a file or in a DICOM folder.

    Values are those the file means: rescaled where its header says so, else in the type it stores.

    Raises:
        Unreadable: if it is damaged, truncated or not an image.
        TooLarge: if its header announces more than `max_bytes` of voxels; nothing was allocated.
    """
    volume: Volume = _module(path).read_volume(path, max_bytes=max_bytes)
    return volume


def read_grid(path: Path) -> Grid:
    """The grid of an image or label file, from its header alone. Raises Unreadable."""
    grid: Grid = _module(path).read_grid(path)
    return grid


def read_segmentation(path: Path, *, max_bytes: int, ext: str | None = None) -> Segmentation:
    """A label map. Values must be whole numbers from 0 to 65535, in whatever type the file holds them.

    `ext` says the format when the file's name does not.

    Raises:
        Unreadable: if it is damaged, truncated or not a label map.
        TooLarge: if its header announces more than `max_bytes` of voxels; nothing was allocated.
    """
    ext = (split_ext(path.name)[1] if ext is None else ext).lower()
    module = _MODULES.get(ext)
    names: dict[str, int] = {}
    if module is nrrd:
        volume, names = nrrd.read_segmentation(path, max_bytes=max_bytes)
    elif module is nifti:
        volume = nifti.read_volume(path, max_bytes=max_bytes)
    else:
        raise Unreadable(f"{ext!r} is no format of label maps; send one of {', '.join(EXTENSIONS)}")
    if volume.channels != 1:
        raise Unreadable(f"a label map has one channel, not {volume.channels}")
    return Segmentation(array=_whole(volume.array[0]), affine=volume.affine, names=names)


def _module(path: Path) -> ModuleType:
    return dicom if path.is_dir() else _MODULES[split_ext(path.name)[1]]


def _whole(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as uint8 or, where one needs it, uint16."""
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= _MAX_LABEL):  # also refuses NaN
        raise Unreadable(f"label values go from 0 to {_MAX_LABEL}, not from {low} to {high}")
    whole = array.astype(np.uint8 if high < 256 else np.uint16, copy=False)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise Unreadable("label values must be whole numbers")
    return whole
