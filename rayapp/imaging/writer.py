"""Writing label maps on their image's exact grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayapp.errors import BadRequest
from rayapp.imaging import nifti, nrrd
from rayapp.imaging.gzip import compress
from rayapp.imaging.volume import Segmentation


def encode_segmentation(
    segmentation: Segmentation, ext: str, *, packed: bool = True, dtype: np.dtype[Any] | None = None
) -> bytes:
    """The file's bytes: `.nii`, `.nii.gz`, `.nrrd` or `.seg.nrrd`; `packed` says whether NRRD data are gzipped.

    Voxels are written as `dtype` (uint8 or uint16; default: the array's own), i fastest, little endian.
    Raises BadRequest for another extension, or when `dtype` cannot hold the values.
    """
    array = segmentation.array
    if dtype is not None and dtype != array.dtype:
        if array.size and int(array.max()) > np.iinfo(dtype).max:
            raise BadRequest(f"label value {int(array.max())} does not fit {dtype}")
        array = array.astype(dtype)
    if array.dtype.itemsize == 2:
        array = array.astype("<u2", copy=False)
    if ext in (".nii", ".nii.gz"):
        data = nifti.encode(segmentation, array)
        return compress(data) if ext == ".nii.gz" else data
    if ext in (".nrrd", ".seg.nrrd"):
        return nrrd.encode(segmentation, array, segments=ext == ".seg.nrrd", packed=packed)
    raise BadRequest(f"label maps are written as .nii, .nii.gz, .nrrd or .seg.nrrd, not {ext!r}")
