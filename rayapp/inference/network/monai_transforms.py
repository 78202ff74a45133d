"""MONAI dictionary transforms around a network, applied to a volume that is already in memory.

The transforms are those of the model's author and run unchanged, except for those that read and write files: the volume
takes the place of LoadImaged, the reply that of SaveImaged. They run on a MetaTensor, which records the operations
applied to it, so that the network's output is restored to exactly the source grid: by the author's own Invertd if there
is one, else by inverting the same transforms with nearest-neighbour interpolation.

Leading transforms that only touch the image run once per image; the rest, such as guidance from clicks, runs for each
prompt. To the rest, the image appears as if loaded on its current grid, and clicks are given on that grid, so that
clicks are placed correctly whatever reorientation and resampling came before.

MONAI's DeepGrow transforms are an exception: they track clicks from the loaded image, slices first, through cropping
and resizing, and restore the mask themselves (RestoreLabeld), so they receive clicks in source voxels.

`TransformPipeline.prepare` may run in several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activations,
    Activationsd,
    Compose,
    EnsureChannelFirst,
    EnsureChannelFirstd,
    Invertd,
    InvertibleTransform,
    LoadImage,
    LoadImaged,
    MapTransform,
    Randomizable,
    SaveImage,
    SaveImaged,
)
from monai.utils.enums import TraceKeys
from torch import Tensor

from rayapp.errors import ModelBroken
from rayapp.geometry import index_to_mm, mm_to_index, same_grid, spacing
from rayapp.imaging.volume import Grid, Volume, painting_order
from rayapp.inference.arrays import Floats, Labels
from rayapp.inference.infer_task import Point

Data = dict[str, Any]
"""The dictionary that MONAI's dictionary transforms pass along."""
SOURCE_CLICKS_TRANSFORM = "AddGuidanceFromPointsd"
"""The transform of `monai.apps.deepgrow` that takes clicks in voxels of the loaded image."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """An image after the transforms that need no prompts.

    Attributes:
        data: The pipeline's dictionary.
        image: Key of the image in `data`.
        source: The source grid.
        source_clicks: Whether the remaining transforms take clicks in source voxels.
    """

    data: Data
    image: str
    source: Grid
    source_clicks: bool = False

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes."""
        return sum(value.nbytes for value in self.data.values() if isinstance(value, Tensor))

    def clicks(self, points: Sequence[Point]) -> list[list[float]]:
        """Clicks as the remaining transforms take them, in voxels of the image as it is now.

        A quarter voxel is added, since some transforms compute with these numbers and truncate: without it, rounding
        errors would move clicks to the previous voxel.
        """
        if self.source_clicks:
            return [list(point) for point in points]
        return [[index + 0.25 for index in voxel] for voxel in positions(points, self.source, self.data[self.image])]


class ChannelFirst:
    """Stand-in for EnsureChannelFirstd, for an image whose channels, if it has any, are first already."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, data: Mapping[str, Any]) -> Data:
        image = data[self.key]
        return {**data, self.key: image[None] if image.ndim == 3 else image}


class KeepMetadata:
    """Wraps a transform that may return a plain array for an image, and restores the MetaTensor's metadata."""

    def __init__(self, transform: Any, key: str) -> None:
        self.transform, self.key = transform, key

    def __call__(self, data: Mapping[str, Any]) -> Data:
        before, after = data.get(self.key), self.transform(data)
        plain = self.key in after and not isinstance(after[self.key], MetaTensor)
        if plain and isinstance(before, MetaTensor):
            return {**after, self.key: _with_metadata_of(before, MetaTensor(torch.as_tensor(after[self.key])))}
        return dict(after)


class TransformPipeline:
    """Transforms before and after a network.

    Args:
        pre: The author's transforms before the network, including those that read files.
        post: The author's transforms after it, including those that write files.
        image: Key of the image.
        pred: Key of the network's output.
    """

    def __init__(self, *, pre: Any, post: Any, image: str = "image", pred: str = "pred") -> None:
        self.image, self.pred = image, pred
        pre_transforms, self._lazy = _flattened(pre)
        post_transforms, _ = _flattened(post)
        self._channel_first = _loads_channel_first(pre_transforms, image)
        self._source_clicks = any(type(t).__name__ == SOURCE_CLICKS_TRANSFORM for t in pre_transforms)
        self._pre = [self._replaced(t) for t in pre_transforms if not isinstance(t, (LoadImage, LoadImaged))]
        self._post = [t for t in post_transforms if not isinstance(t, (SaveImage, SaveImaged))]
        self._inverts = any(isinstance(t, Invertd) and pred in t.keys for t in self._post)
        self._image_only = next((n for n, t in enumerate(self._pre) if not self._only_touches_image(t)), len(self._pre))

    @property
    def sigmoid(self) -> bool:
        """True for independent channels (sigmoid), False for exclusive classes (softmax)."""
        dictionaries = (any(t.sigmoid) for t in self._post if isinstance(t, Activationsd))
        return any(dictionaries) or any(t.sigmoid for t in self._post if isinstance(t, Activations))

    @property
    def pre_transforms(self) -> Sequence[Any]:
        """The transforms that run before the network."""
        return self._pre

    def _replaced(self, transform: Any) -> Any:
        """The transform that runs in place of the author's."""
        if isinstance(transform, (EnsureChannelFirst, EnsureChannelFirstd)):
            return transform if self._source_clicks else ChannelFirst(self.image)
        keeps = isinstance(transform, InvertibleTransform) or type(transform).__module__.startswith("monai.transforms")
        return transform if keeps else KeepMetadata(transform, self.image)

    def _only_touches_image(self, transform: Any) -> bool:
        """True if a transform reads and changes nothing but the image, and is deterministic."""
        if isinstance(transform, ChannelFirst):
            return True
        known = type(transform).__module__.startswith("monai.transforms")
        on_image = isinstance(transform, MapTransform) and set(transform.keys) == {self.image}
        return known and on_image and not isinstance(transform, Randomizable)

    def prepare(self, volume: Volume) -> PreparedData:
        """Run the leading transforms, which need no prompts."""
        source = Grid(shape=volume.shape, affine=volume.affine)
        if self._source_clicks:  # transforms that take slices for channels cannot handle rotated axes
            volume = replace(volume, affine=np.diag([*spacing(volume.affine), 1.0]))
        data: Data = {self.image: loaded(volume, channel_first=self._channel_first)}
        data = self._run(self._pre[: self._image_only], data)
        return PreparedData(data=data, image=self.image, source=source, source_clicks=self._source_clicks)

    def complete(self, prepared: PreparedData, entries: Mapping[str, Any]) -> Data:
        """Run the remaining transforms before the network.

        Args:
            prepared: What `prepare` returned; not modified.
            entries: The prompts' entries in the dictionary, with clicks of `PreparedData.clicks`.
        """
        data = dict(prepared.data)
        if self._image_only < len(self._pre):
            image = data[self.image].clone()
            original = {key: image.meta[key] for key in ("spatial_shape", "original_affine")}
            if not self._source_clicks:
                image.meta["spatial_shape"] = np.array(image.shape[-3:])
                image.meta["original_affine"] = image.affine.numpy().copy()
            data |= {self.image: image, f"{self.image}_meta_dict": image.meta, **entries}
            data = self._run(self._pre[self._image_only :], data)
            data[self.image].meta.update(original)
        else:
            data |= entries
        for operation in data[self.image].applied_operations:
            operation[TraceKeys.ID] = TraceKeys.NONE  # an Invertd may hold a copy of the transforms
        return data

    def labels(self, data: Data, output: Tensor, source: Grid, *, first: int = 0) -> Labels:
        """Run the transforms after the network, and restore their result to the source grid.

        Args:
            data: The dictionary that `complete` returned.
            output: The network's output for one image, (C, …).
            source: The source grid.
            first: Label value of the first channel, if the result has several.

        Returns:
            Label map (I, J, K).

        Raises:
            ModelBroken: If the result is no label map, or cannot be restored to the source grid.
        """
        image = data[self.image]
        pred = MetaTensor(output.as_tensor() if isinstance(output, MetaTensor) else output).cpu()
        if pred.shape[-3:] == image.shape[-3:]:
            pred = _with_metadata_of(image, pred)
        data = self._run(self._post, {**data, self.pred: pred}, lazy=False)
        return _as_labels(self._pred_on_source(data, source), first)

    def _pred_on_source(self, data: Data, source: Grid) -> npt.NDArray[Any]:
        """The result of the transforms after the network, (C, I, J, K)."""
        pred, image = data[self.pred], data[self.image]
        if not isinstance(pred, MetaTensor):
            pred = MetaTensor(torch.as_tensor(pred), meta=dict(image.meta))
        if pred.ndim == 3:
            pred = pred[None]
        same_shape = tuple(pred.shape[-3:]) == source.shape
        restored = same_shape if self._source_clicks else _on_grid(pred, source)
        if not self._inverts and not restored:
            if pred.shape[-3:] != image.shape[-3:]:
                raise ModelBroken(
                    f"its post-transforms return {tuple(pred.shape[-3:])} voxels, which is neither the image's grid "
                    f"{source.shape} nor the network's {tuple(image.shape[-3:])}"
                )
            pred = self._inverted(image, pred, nearest=True)
        if tuple(pred.shape[-3:]) != source.shape:
            raise ModelBroken(
                f"its post-transforms return {tuple(pred.shape[-3:])} voxels for an image of {source.shape}"
            )
        array: npt.NDArray[Any] = pred.detach().cpu().numpy()
        return array

    def on_source(self, data: Data, field: Tensor, source: Grid) -> Floats:
        """Restore a field on the network's input grid to the source grid, with linear interpolation.

        Args:
            data: The dictionary that `complete` returned.
            field: One value per voxel of the network's input.
            source: The source grid.

        Returns:
            Shape (I, J, K); 0 where the network's input does not reach.

        Raises:
            ModelBroken: If inverting the transforms does not lead back to the source grid.
        """
        image = data[self.image]
        inverted = self._inverted(image, _with_metadata_of(image, MetaTensor(field[None])), nearest=False)
        restored: Floats = inverted[0].cpu().numpy()
        if restored.shape != source.shape:
            raise ModelBroken(
                f"its transforms invert to {restored.shape} voxels, not to the image's {tuple(source.shape)}"
            )
        return restored

    def _inverted(self, image: MetaTensor, pred: MetaTensor, *, nearest: bool) -> MetaTensor:
        """`pred` after inverting the operations that were applied to `image`."""
        invert = Invertd(
            keys=self.pred,
            transform=Compose(self._pre),
            orig_keys=self.image,
            nearest_interp=nearest,
            to_tensor=True,
        )
        inverted: MetaTensor = invert({self.image: image, self.pred: pred.float()})[self.pred]
        return inverted

    def _run(self, transforms: Sequence[Any], data: Data, *, lazy: bool | None = None) -> Data:
        if not transforms:
            return data
        result: Data = Compose(transforms, lazy=self._lazy if lazy is None else lazy)(data)
        return result


def loaded(volume: Volume, *, channel_first: bool) -> MetaTensor:
    """A volume as LoadImaged would return it.

    Args:
        volume: The source image.
        channel_first: Whether an image of a single channel keeps its channel axis.

    Returns:
        float32, (C, I, J, K), or (I, J, K) for a single channel that is dropped.
    """
    array = np.array(volume.array, dtype=np.float32, order="C")  # a copy, since transforms may work in place
    image = torch.from_numpy(array[0] if len(array) == 1 and not channel_first else array)
    affine = torch.from_numpy(np.array(volume.affine, dtype=np.float64))
    meta = {
        "affine": affine,
        "original_affine": affine.numpy().copy(),  # an array, as LoadImaged leaves it
        "spatial_shape": np.array(volume.shape),
        "original_channel_dim": 0 if image.ndim == 4 else "no_channel",
        "space": "RAS",
        "filename_or_obj": "",
    }
    return MetaTensor(image, affine=affine, meta=meta)


def checked_output(output: Tensor) -> Tensor:
    """Return a network's output unless it contains NaN.

    Raises:
        ModelBroken: If it contains NaN, from which no mask can be made.
    """
    if bool(output.isnan().any()):
        raise ModelBroken("its network answers with NaN: its weights or its input intensities are out of range")
    return output


def positions(points: Sequence[Point], source: Grid, image: MetaTensor) -> list[list[int]]:
    """Voxels of a transformed image that contain the centres of source voxels.

    Args:
        points: Source voxels (i, j, k).
        source: The source grid.
        image: The transformed image; points outside it are clipped to it.
    """
    if not points:
        return []
    continuous = mm_to_index(image.affine.numpy().astype(np.float64), index_to_mm(source.affine, np.array(points)))
    last = np.array(image.shape[-3:]) - 1
    voxels: list[list[int]] = np.clip(np.rint(continuous), 0, last).astype(int).tolist()
    return voxels


def _flattened(transforms: Any) -> tuple[list[Any], bool | None]:
    """The transforms of a Compose, of a list or a single one, in order; and whether they run lazily."""
    if transforms is None:
        return [], False
    if isinstance(transforms, Compose):
        return list(transforms.flatten().transforms), transforms.lazy
    if isinstance(transforms, (list, tuple)):
        return list(Compose(list(transforms)).flatten().transforms), False
    return [transforms], False


def _loads_channel_first(transforms: Sequence[Any], image: str) -> bool:
    """True if the author's LoadImaged returns a channel axis even for a single channel."""
    if any(isinstance(t, (EnsureChannelFirst, EnsureChannelFirstd)) for t in transforms):
        return False
    loaders = [t for t in transforms if isinstance(t, LoadImaged) and image in t.keys]
    return not loaders or any(t._loader.ensure_channel_first for t in loaders)


def _on_grid(pred: MetaTensor, source: Grid) -> bool:
    return same_grid(tuple(pred.shape[-3:]), pred.affine.numpy(), source.shape, source.affine)


def _with_metadata_of(image: MetaTensor, pred: MetaTensor) -> MetaTensor:
    """`pred` with the grid and the applied operations of `image`."""
    pred.meta = dict(image.meta)
    pred.applied_operations = list(image.applied_operations)
    return pred


def _as_labels(pred: npt.NDArray[Any], first: int) -> Labels:
    """Convert (C, I, J, K) to a label map.

    A single channel holds label values. Several channels hold one structure each and may overlap: the smallest
    structure at a voxel gives its value, since a structure within another one is smaller.
    """
    if len(pred) == 1:
        values = np.rint(np.nan_to_num(pred[0], nan=0))
        if values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise ModelBroken(f"label values must lie from 0 to 255, not from {values.min()} to {values.max()}")
        return np.asfortranarray(values.astype(np.uint8))
    labels = np.zeros(pred.shape[1:], dtype=np.uint8, order="F")
    inside = pred[1 - first :] > 0.5  # without a background channel
    for index in painting_order([float(channel.sum()) for channel in inside]):
        labels[inside[index]] = index + 1
    return labels
