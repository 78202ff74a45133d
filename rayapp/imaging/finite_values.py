"""Images without NaN and infinities, which ratio and T1 maps have and neither networks nor DICOM can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = float(np.finfo(np.float32).max)


def finite_values(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array with the lowest finite value for NaN and -Inf, and the highest for Inf; what a 32-bit float cannot hold
    counts as infinite.

    The same array if there is nothing to replace; zeros if no value is finite.
    """
    if array.dtype.kind != "f" or not array.size:
        return array
    if array.min() >= -_LARGEST and array.max() <= _LARGEST:  # a NaN makes both NaN
        return array
    good = np.abs(array) <= _LARGEST
    replaced = array.copy("K")
    low, high = (array[good].min(), array[good].max()) if good.any() else (0, 0)
    replaced[~good] = low
    replaced[array > _LARGEST] = high
    return replaced
