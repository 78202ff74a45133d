"""Reading image and label files in any supported format, chosen by the file name's extension, or a folder of DICOM
files.

Thread-safe. Arrays own their memory, with i fastest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.imaging import dicom_series, metaimage, nifti, nrrd
from rayapp.imaging.detached import DETACHED, ImageHeader
from rayapp.imaging.finite_values import finite_values
from rayapp.imaging.volume import Grid, Segmentation, Volume

_MODULES: dict[str, ModuleType] = {
    **{".nii.gz": nifti, ".seg.nrrd": nrrd, ".nii": nifti, ".nrrd": nrrd},
    **{".mha": metaimage, ".mhd": metaimage, ".nhdr": nrrd, ".hdr": nifti},
}
IMAGE_EXTENSIONS = tuple(_MODULES)
"""Extensions of images. Longer ones first, so that the first match is the whole extension."""
EXTENSIONS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".mha")
"""Extensions of single-file formats, which can be uploaded and hold label maps."""
_MAX_LABEL = 65535
_ROUNDING = 1e-3
"""Largest deviation of a label value from an integer, for values below 100; for larger ones, a hundred-thousandth. This
is the rounding error of values scaled to 16 bits: 1 becomes 1.0000153."""


def split_ext(filename: str) -> tuple[str, str]:
    """Stem and extension of a file name, such as `("spleen_10", ".nii.gz")`.

    Args:
        filename: a file name, or a whole client path, including a Windows one.

    Raises:
        Unreadable: for an unsupported extension.
    """
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    for ext in EXTENSIONS:
        if name.lower().endswith(ext) and len(name) > len(ext):
            return name[: -len(ext)], ext
    raise Unreadable(f"{name[-60:]!r} is not of a supported format: use {', '.join(EXTENSIONS)}")


def data_file(path: Path) -> Path | None:
    """The voxel file of a detached header; None for a file that holds its own voxels. Raises Unreadable."""
    if path.is_dir() or not path.name.lower().endswith(DETACHED):
        return None
    return _header(path).data_file(path)


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """Read the image in a file or in a DICOM folder.

    Values are rescaled where the header says so, and otherwise keep the stored type. All are finite: NaN and -Inf
    become the lowest of the image's finite values, Inf the highest.

    Raises:
        Unreadable: if the file is damaged, truncated or not an image.
        TooLarge: if its header gives more than `max_bytes` of voxels; nothing is allocated then.
    """
    volume: Volume = _module(path).read_volume(path, max_bytes=max_bytes)
    return dataclasses.replace(volume, array=finite_values(volume.array), path=path)


def read_grid(path: Path) -> Grid:
    """The grid of an image or label file, from its header alone. Raises Unreadable."""
    return dicom_series.read_grid(path) if path.is_dir() else _header(path).grid


def read_segmentation(path: Path, *, max_bytes: int, ext: str | None = None) -> Segmentation:
    """Read a label map. Values must be integers from 0 to 65535, of whatever stored type.

    Args:
        path: the file.
        max_bytes: maximum size of its voxels.
        ext: the format, when the file's name does not tell.

    Raises:
        Unreadable: if the file is damaged, truncated or not a label map.
        TooLarge: if its header gives more than `max_bytes` of voxels; nothing is allocated then.
    """
    ext = (split_ext(path.name)[1] if ext is None else ext).lower()
    module = _MODULES.get(ext)
    names: dict[str, int] = {}
    if module is nrrd:
        volume, names = nrrd.read_segmentation(path, max_bytes=max_bytes)
    elif module is not None and ext in EXTENSIONS:
        volume = module.read_volume(path, max_bytes=max_bytes)
    else:
        raise Unreadable(f"{ext!r} is not a supported label map format: use {', '.join(EXTENSIONS)}")
    if volume.channels != 1:
        raise Unreadable(
            f"a label map must have one channel, not {volume.channels}: for one-hot channels or "
            "probabilities, save the number of the highest channel"
        )
    return Segmentation(array=_as_labels(volume.array[0]), affine=volume.affine, names=names)


def _header(path: Path) -> ImageHeader:
    header: ImageHeader = _module(path).read_header(path)
    return header


def _module(path: Path) -> ModuleType:
    if path.is_dir():
        return dicom_series
    ext = next((ext for ext in IMAGE_EXTENSIONS if path.name.lower().endswith(ext)), None)
    return _MODULES[split_ext(path.name)[1] if ext is None else ext]


def _as_labels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as uint8 or, where needed, uint16; rounded if scaling left them a little off whole numbers."""
    low, high = array.min(), array.max()
    if not (low >= -_ROUNDING and high <= _MAX_LABEL):  # also rejects NaN
        raise Unreadable(f"label values must lie between 0 and {_MAX_LABEL}; these range from {low} to {high}")
    if array.dtype.kind != "f":
        return array.astype(np.uint8 if high < 256 else np.uint16, copy=False)
    whole = np.rint(array)
    labels: npt.NDArray[Any] = whole.astype(np.uint8 if whole.max() < 256 else np.uint16)
    whole -= array
    if np.abs(whole, out=whole).max() > max(_ROUNDING, 1e-5 * float(high)):
        what = "these look like probabilities: threshold them first" if high <= 1 else f"not up to {high}"
        raise Unreadable(f"label values must be whole numbers: {what}")
    return labels
