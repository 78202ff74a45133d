"""`Writer`: the network's mask as a file, from which the server answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayapp.compat.post_transforms import Restored
from rayapp.compat.served_image import served
from rayapp.imaging.volume import Segmentation, painting_order
from rayapp.imaging.writer import encode_segmentation


class Writer:
    """Writes a mask on the image's grid.

    Args:
        label: Key of the mask: label values, or one channel for each structure.
        json: Key of the reply's JSON.
        ref_image: Key of the image that the network saw.
    """

    def __init__(self, label: str = "pred", json: str = "result", ref_image: str = "image", **_: Any) -> None:
        self.label, self.json, self.ref_image = label, json, ref_image

    def __call__(self, data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file, which the caller deletes, and the reply's JSON."""
        placed: Mapping[str, Any] = data
        image = served()
        if image is None or tuple(data[self.label].shape[-3:]) != image.volume.shape:
            placed = Restored(keys=self.label, ref_image=self.ref_image)(data)
        mask = placed[self.label]
        array = _values(np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask))
        segmentation = Segmentation(array=np.asfortranarray(array), affine=self._affine(data))
        with tempfile.NamedTemporaryFile(suffix=".nii", delete=False) as file:
            file.write(encode_segmentation(segmentation, ".nii"))
        return str(Path(file.name)), dict(data.get(self.json) or {})

    def _affine(self, data: Mapping[str, Any]) -> Any:
        image = served()
        if image is not None:
            return image.volume.affine
        reference = data.get(self.ref_image)
        meta = getattr(reference, "meta", None) or data.get(f"{self.ref_image}_meta_dict", {})
        return np.asarray(meta.get("original_affine", np.eye(4)), dtype=np.float64)


def _values(array: Any) -> Any:
    """Label values, uint8, of values (1, I, J, K) or (I, J, K), or of one channel for each structure."""
    if array.ndim == 4 and len(array) > 1:
        labels = np.zeros(array.shape[1:], np.uint8)
        inside = array > 0.5
        for place in painting_order([float(channel.sum()) for channel in inside]):
            labels[inside[place]] = place + 1
        return labels
    return np.rint(np.nan_to_num(array[0] if array.ndim == 4 else array)).astype(np.uint8)
