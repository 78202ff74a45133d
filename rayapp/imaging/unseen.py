"""What nobody looked at in a label map.

A voxel of `UNSEEN` says so by itself. `annotated_slices` in a label's info, `{"axis": 2, "slices": [12, 30]}` with a
voxel axis of the label file and indices along it, says it of all voxels of the other slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Segmentation

UNSEEN = 255
"""Value of a label map where nobody looked."""


def unseen_voxels(segmentation: Segmentation) -> npt.NDArray[np.bool_] | None:
    """Where nobody looked (I, J, K); None if that is nowhere.

    A segment may have the value `UNSEEN` too: where names say so, or where a label map without names has no other.
    """
    array = segmentation.array
    if UNSEEN in segmentation.names.values() or int(array.max(initial=0)) != UNSEEN:
        return None
    unseen: npt.NDArray[np.bool_] = array == UNSEEN
    return unseen if segmentation.names or array[~unseen].any() else None


def with_unseen_slices(labels: npt.NDArray[np.uint8], info: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A label map (I, J, K) with `UNSEEN` on the slices that its info says were not annotated; the same without.

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
