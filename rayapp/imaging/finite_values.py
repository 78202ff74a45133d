"""Replacement of NaN and infinities, which occur in ratio and T1 maps and which neither networks nor DICOM accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = float(np.finfo(np.float32).max)


def finite_values(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array with the lowest finite value for NaN and -Inf, and the highest for Inf. Values beyond the range of
    32-bit floats count as infinite.

    Returns the same array if there is nothing to replace, and zeros if no value is finite.
    """
    if array.dtype.kind != "f" or not array.size:
        return array
    if array.min() >= -_LARGEST and array.max() <= _LARGEST:  # a NaN makes both NaN
        return array
    replaced = array.copy("K")
    parts = list(_parts(replaced))
    spans = [(good.min(), good.max()) for part in parts if (good := part[np.abs(part) <= _LARGEST]).size]
    low, high = (min(low for low, _ in spans), max(high for _, high in spans)) if spans else (0, 0)
    for part in parts:
        part[part > _LARGEST] = np.inf
        part[~(part >= -_LARGEST)] = low
        part[part == np.inf] = high
    return replaced


def _parts(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Views that together cover the array, one per plane of its slowest axis of more than one element, so that
    temporary arrays stay small.
    """
    axis = max(range(array.ndim), key=lambda axis: (array.shape[axis] > 1, abs(array.strides[axis])))
    planes = np.moveaxis(array, axis, 0)
    yield from (planes[n : n + 1] for n in range(len(planes)))
