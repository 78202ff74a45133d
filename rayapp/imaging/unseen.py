"""Unseen voxels: voxels of a label map that nobody looked at.

They are marked by the value `UNSEEN`. Alternatively, `annotated_slices` in a label's info, such as `{"axis": 2,
"slices": [12, 30]}` with a voxel axis of the label file and indices along it, marks all voxels of other slices as
unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Segmentation

UNSEEN = 255
"""Value of unseen voxels in a label map."""


def unseen_voxels(segmentation: Segmentation) -> npt.NDArray[np.bool_] | None:
    """Mask (I, J, K) of the unseen voxels; None if there are none.

    The value `UNSEEN` belongs to a segment instead if the label map's names say so, or if it has no names and no other
    value.
    """
    array = segmentation.array
    if UNSEEN in segmentation.names.values() or int(array.max(initial=0)) != UNSEEN:
        return None
    unseen: npt.NDArray[np.bool_] = array == UNSEEN
    return unseen if segmentation.names or array[~unseen].any() else None


def with_unseen_slices(labels: npt.NDArray[np.uint8], info: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A label map (I, J, K) with `UNSEEN` on the slices that were not annotated according to its info.

    Raises:
        BadRequest: If `annotated_slices` does not name slices of the label map.
    """
    said = info.get("annotated_slices")
    if said is None:
        return labels
    try:
        axis, slices = int(said["axis"]), [int(index) for index in said["slices"]]
        if not 0 <= axis < 3 or not all(0 <= index < labels.shape[axis] for index in slices):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise BadRequest(
            'the "annotated_slices" of its info must be such as {"axis": 2, "slices": [12, 30]}, with indices that its '
            f"shape {labels.shape} has"
        ) from None
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.where(np.isin(np.arange(labels.shape[axis]), slices).reshape(shape), labels, np.uint8(UNSEEN))
