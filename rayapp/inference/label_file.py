"""A predicted mask as a label file."""

from __future__ import annotations

import numpy as np

from rayapp.geometry import Affine
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.infer_task import Prediction, TaskInfo


def as_segmentation(prediction: Prediction, info: TaskInfo, affine: Affine) -> Segmentation:
    """The mask with its affine (voxel indices to RAS millimetres) and the names of the model's structures."""
    return Segmentation(array=prediction.labels, affine=affine, names=info.structures)


def encode_prediction(prediction: Prediction, info: TaskInfo, affine: Affine, ext: str, *, wide: bool = False) -> bytes:
    """Encode the mask.

    Args:
        prediction: of the model.
        info: of the model; names the structures.
        affine: from the image's voxel indices to RAS millimetres.
        ext: format of the file, with the leading dot.
        wide: store values as uint16 rather than uint8.
    """
    mask = as_segmentation(prediction, info, affine)
    return encode_segmentation(mask, ext, dtype=np.dtype(np.uint16 if wide else np.uint8))
