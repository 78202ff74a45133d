"""Encoding label maps as files, on their image's exact grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayapp.errors import BadRequest
from rayapp.imaging import nifti, nrrd
from rayapp.imaging.payload import gzipped
from rayapp.imaging.volume import Segmentation

WRITABLE = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd")
"""Formats of label maps that are written."""


def encode_segmentation(
    segmentation: Segmentation, ext: str, *, compress: bool = True, dtype: np.dtype[Any] | None = None
) -> bytes:
    """The bytes of a label map file. Fastest when `segmentation.array` has i fastest in memory.

    Args:
        segmentation: the label map.
        ext: one of `WRITABLE`.
        compress: gzip the voxels of an NRRD file.
        dtype: uint8 or uint16; by default the smaller one that holds the values. Little endian.

    Raises:
        BadRequest: for another extension or type, or if a value does not fit `dtype`.
    """
    array = segmentation.array
    highest = int(array.max()) if array.size else 0
    dtype = np.dtype(np.uint8 if highest <= 255 else np.uint16) if dtype is None else np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16):
        raise BadRequest(f"label maps can be written as uint8 or uint16, not {dtype}")
    if highest > np.iinfo(dtype).max:
        raise BadRequest(f"label value {highest} does not fit {dtype}")
    if ext == ".nii":
        return nifti.encode(segmentation, dtype).tobytes()
    if ext == ".nii.gz":
        return gzipped(nifti.encode(segmentation, dtype))
    if ext in (".nrrd", ".seg.nrrd"):
        return nrrd.encode(segmentation, dtype, segments=ext == ".seg.nrrd", packed=compress)
    raise BadRequest(f"label maps can be written as {', '.join(WRITABLE)}, not {ext!r}")
