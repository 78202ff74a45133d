"""`monailabel.transform.post`: transforms after the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from scipy import ndimage

from rayapp.compat.served_image import on_grid, served


class Restored(MapTransform):  # type: ignore[misc] # MONAI has no types
    """The label map on the grid of the image's file, by nearest neighbour between the two grids in space.

    Args:
        keys: Keys of the label maps.
        ref_image: Key of the image that the network saw, which knows its grid.
        has_channel: The label maps have a channel axis, which is dropped if it is a single one.
        config_labels: Name to value: the n-th name's voxels get its value instead of n.
    """

    def __init__(
        self,
        keys: Any,
        ref_image: str,
        has_channel: bool = True,
        invert_orient: bool = False,  # noqa: ARG002
        mode: Any = "nearest",  # noqa: ARG002
        config_labels: Mapping[str, int] | None = None,
        align_corners: Any = None,  # noqa: ARG002
        meta_key_postfix: str = "meta_dict",
    ) -> None:
        super().__init__(keys)
        self.ref_image, self.has_channel = ref_image, has_channel
        self.config_labels = config_labels
        self.meta_key_postfix = meta_key_postfix

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            mask = result[key]
            array = np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask)
            channels = list(array) if array.ndim == 4 else [array]
            placed = np.stack([self._placed(channel, mask, result) for channel in channels])
            restored = self._named(placed[0] if len(placed) == 1 else placed)
            result[key] = self._tensor(restored, result) if isinstance(mask, torch.Tensor) else restored
        return result

    def _tensor(self, array: Any, data: Mapping[Any, Any]) -> MetaTensor:
        """The label map as loaded from a file on the image's grid, for a further stage of a pipeline."""
        image = data[self.ref_image]
        meta: dict[str, Any] = {"original_channel_dim": "no_channel" if array.ndim == 3 else 0, "space": "RAS"}
        if isinstance(image, MetaTensor) and image.meta.get("original_affine") is not None:
            meta |= {"affine": torch.as_tensor(image.meta["original_affine"]), "spatial_shape": array.shape[-3:]}
            meta["original_affine"] = image.meta["original_affine"]
        return MetaTensor(torch.as_tensor(array), meta=meta)

    def _placed(self, array: Any, mask: Any, data: Mapping[Any, Any]) -> Any:
        image = data[self.ref_image]
        meta = (
            image.meta if isinstance(image, MetaTensor) else data.get(f"{self.ref_image}_{self.meta_key_postfix}", {})
        )
        shape, target = meta.get("spatial_shape"), meta.get("original_affine")
        current = served()
        if current is not None:
            shape, target = current.volume.shape, current.volume.affine
        if shape is None or (tuple(array.shape) == tuple(map(int, shape)) and not isinstance(image, MetaTensor)):
            return array
        grid = image if isinstance(image, MetaTensor) and image.shape[-3:] == array.shape else mask
        if target is not None and isinstance(grid, MetaTensor):
            return on_grid(array, grid.affine.numpy().astype(np.float64), tuple(map(int, shape)), np.asarray(target))
        if tuple(array.shape) == tuple(map(int, shape)):
            return array
        zoom = [int(new) / old for new, old in zip(shape, array.shape, strict=True)]
        return ndimage.zoom(array, zoom, order=0, grid_mode=True, mode="nearest")

    def _named(self, array: Any) -> Any:
        if not isinstance(self.config_labels, Mapping):
            return array
        named = np.zeros_like(array)
        names = [name for name in self.config_labels if name != "background"]
        for place, name in enumerate(names, 1):
            named[array == place] = self.config_labels[name]
        return named


class LargestCCd(MapTransform):  # type: ignore[misc] # MONAI has no types
    """Only the largest connected component of each mask."""

    def __init__(self, keys: Any, has_channel: bool = True) -> None:
        super().__init__(keys)
        self.has_channel = has_channel

    @staticmethod
    def get_largest_cc(label: Any) -> Any:
        """The largest connected component of one mask, whatever its number of axes."""
        array = np.asarray(label)
        parts, _ = ndimage.label(array)
        sizes = np.bincount(parts.ravel())[1:]
        return array * (parts == sizes.argmax() + 1) if sizes.size else array

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            mask = result[key]
            each = [self.get_largest_cc(part) for part in mask] if self.has_channel else self.get_largest_cc(mask)
            kept = np.stack(each) if self.has_channel else each
            result[key] = torch.as_tensor(kept) if isinstance(mask, torch.Tensor) else kept
        return result


class _Located(MapTransform):  # type: ignore[misc] # MONAI has no types
    """A position of each mask, as JSON of the reply.

    Args:
        keys: Keys of the masks.
        result: Key of the reply's JSON.
        name: Name of the position in it.
    """

    def __init__(self, keys: Any, result: str, name: str) -> None:
        super().__init__(keys)
        self.result, self._name = result, name

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            places = np.argwhere(np.asarray(result[key]))
            found = self.locate(places) if len(places) else []
            result[self.result] = {**(result.get(self.result) or {}), self._name: found}
        return result

    def locate(self, places: Any) -> list[list[int]]:
        """The position of a mask with these voxels, (N, axes)."""
        raise NotImplementedError


class BoundingBoxd(_Located):
    """The box around each mask, under the name `bbox`; see `_Located`."""

    def __init__(self, keys: Any, result: str = "result", bbox: str = "bbox") -> None:
        super().__init__(keys, result, bbox)

    def locate(self, places: Any) -> list[list[int]]:
        """Least and largest index along each axis."""
        return [places.min(axis=0).tolist(), places.max(axis=0).tolist()]


class ExtremePointsd(_Located):
    """The outermost points of each mask along each axis, under the name `points`; see `_Located`."""

    def __init__(self, keys: Any, result: str = "result", points: str = "points") -> None:
        super().__init__(keys, result, points)

    def locate(self, places: Any) -> list[list[int]]:
        """The first and the last point along each axis."""
        ends = [p for axis in range(places.shape[1]) for p in (places[:, axis].argmin(), places[:, axis].argmax())]
        return [places[end].tolist() for end in ends]


class RenameKeyd(Transform):  # type: ignore[misc] # MONAI has no types
    """An entry of the dictionary under another key."""

    def __init__(self, source_key: str, target_key: str) -> None:
        self.source_key, self.target_key = source_key, target_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        result = dict(data)
        result[self.target_key] = result.pop(self.source_key)
        return result
