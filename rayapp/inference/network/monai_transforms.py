"""TransformPipeline: MONAI's dictionary transforms around a network, on a volume that is in memory already.

The transforms are whoever's who wrote the model, and run as they are, but for those that read and write files: the
volume takes the place of LoadImaged, the reply that of SaveImaged. They run on a MetaTensor, which remembers what was
done to it, so that what the network found comes back onto the source's exact grid: by the author's own Invertd if
there is one, else by inverting the same steps with nearest-neighbour interpolation.

The steps that look at the image alone, up to the first that does anything else, run once per image; what follows (as
guidance from clicks does) runs for each prompt. What follows is told that the image was loaded on the grid it has
there, and gets clicks on that grid: so clicks lie where they should whatever was turned and resampled before.
MONAI's own DeepGrow steps are the exception: they follow clicks from the image as it was loaded, slices first, through
cropping and resizing, and put the mask back by themselves (RestoreLabeld), so they get clicks as they were made.
A pipeline's `prepare` may run in several threads at once.
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
from rayapp.imaging.volume import Grid, Volume, from_below
from rayapp.inference.infer_task import Point

Data = dict[str, Any]
Labels = npt.NDArray[np.uint8]
FROM_LOADED = "AddGuidanceFromPointsd"
"""The step of `monai.apps.deepgrow` that takes clicks on the image as it was loaded."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """An image after the steps that need no prompts, and the source's grid; with `as_made` clicks are given on that."""

    data: Data
    image: str
    source: Grid
    as_made: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(value.nbytes for value in self.data.values() if isinstance(value, Tensor))

    def clicks(self, points: Sequence[Point]) -> list[list[float]]:
        """Source voxels' places in the image as it is now, for transforms that cut decimals off: a little into the
        voxel, lest one that computes with a click's place ends in the voxel before."""
        if self.as_made:
            return [list(point) for point in points]
        return [[at + 0.25 for at in voxel] for voxel in positions(points, self.source, self.data[self.image])]


class ChannelFirst:
    """What EnsureChannelFirstd does to an image whose channels, if it has any, are first already."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, data: Mapping[str, Any]) -> Data:
        image = data[self.key]
        return {**data, self.key: image[None] if image.ndim == 3 else image}


class Tracked:
    """A step that may leave a bare array of an image: what is known of where that lies is kept."""

    def __init__(self, step: Any, key: str) -> None:
        self.step, self.key = step, key

    def __call__(self, data: Mapping[str, Any]) -> Data:
        before, after = data.get(self.key), self.step(data)
        bare = self.key in after and not isinstance(after[self.key], MetaTensor)
        if bare and isinstance(before, MetaTensor):
            return {**after, self.key: _beside(before, MetaTensor(torch.as_tensor(after[self.key])))}
        return dict(after)


class TransformPipeline:
    """Steps before and after a network.

    Args:
        pre: the author's transforms before the network, files included.
        post: those after it.
        image, pred: the keys of the image and of what the network found.
    """

    def __init__(self, *, pre: Any, post: Any, image: str = "image", pred: str = "pred") -> None:
        self.image, self.pred = image, pred
        steps, self._lazy = _steps(pre)
        self._channel_first = _loads_channel_first(steps, image)
        self._as_made = any(type(step).__name__ == FROM_LOADED for step in steps)
        self._steps = [self._placed(step) for step in steps if not isinstance(step, (LoadImage, LoadImaged))]
        self._post = [step for step in _steps(post)[0] if not isinstance(step, (SaveImage, SaveImaged))]
        self._inverts = any(isinstance(step, Invertd) and pred in step.keys for step in self._post)
        self._alone = next((n for n, step in enumerate(self._steps) if not self._of_image(step)), len(self._steps))

    @property
    def sigmoid(self) -> bool:
        """Whether what the network says of each channel stands alone, and is no choice between them."""
        dictionaries = (any(step.sigmoid) for step in self._post if isinstance(step, Activationsd))
        return any(dictionaries) or any(step.sigmoid for step in self._post if isinstance(step, Activations))

    @property
    def steps(self) -> Sequence[Any]:
        """The transforms before the network that are run."""
        return self._steps

    def _placed(self, step: Any) -> Any:
        """What is run in a step's place."""
        if isinstance(step, (EnsureChannelFirst, EnsureChannelFirstd)):
            return step if self._as_made else ChannelFirst(self.image)
        known = isinstance(step, InvertibleTransform) or type(step).__module__.startswith("monai.transforms")
        return step if known else Tracked(step, self.image)

    def _of_image(self, step: Any) -> bool:
        """Whether a step only looks at, and changes, the image."""
        if isinstance(step, ChannelFirst):
            return True
        known = type(step).__module__.startswith("monai.transforms")
        only = isinstance(step, MapTransform) and set(step.keys) == {self.image}
        return known and only and not isinstance(step, Randomizable)

    def prepare(self, volume: Volume) -> PreparedData:
        """Run what needs no prompts."""
        source = Grid(shape=volume.shape, affine=volume.affine)
        if self._as_made:  # steps that take slices for channels can do nothing with axes that are turned
            volume = replace(volume, affine=np.diag([*spacing(volume.affine), 1.0]))
        data: Data = {self.image: loaded(volume, channel_first=self._channel_first)}
        data = self._run(self._steps[: self._alone], data)
        return PreparedData(data=data, image=self.image, source=source, as_made=self._as_made)

    def complete(self, prepared: PreparedData, entries: Mapping[str, Any]) -> Data:
        """Run what is left before the network, with the prompts' `entries` (clicks as of `prepared.clicks`)."""
        data = dict(prepared.data)
        if self._alone < len(self._steps):
            image = data[self.image].clone()
            original = {key: image.meta[key] for key in ("spatial_shape", "original_affine")}
            if not self._as_made:
                image.meta["spatial_shape"] = np.array(image.shape[-3:])
                image.meta["original_affine"] = image.affine.numpy().copy()
            data |= {self.image: image, f"{self.image}_meta_dict": image.meta, **entries}
            data = self._run(self._steps[self._alone :], data)
            data[self.image].meta.update(original)
        else:
            data |= entries
        for operation in data[self.image].applied_operations:
            operation[TraceKeys.ID] = TraceKeys.NONE  # an Invertd may hold a copy of the transforms
        return data

    def labels(self, data: Data, output: Tensor, source: Grid, *, first: int = 0) -> Labels:
        """Run what comes after the network on its `output` (C, …) for one image; labels on the source's grid.

        `first` is the label value of the first channel, if several are left after that.

        Raises ModelBroken if these transforms do not make a label map that can be put there.
        """
        image = data[self.image]
        pred = MetaTensor(output.as_tensor() if isinstance(output, MetaTensor) else output).cpu()
        if pred.shape[-3:] == image.shape[-3:]:
            pred = _beside(image, pred)
        data = self._run(self._post, {**data, self.pred: pred}, lazy=False)
        found = self._on_source(data, source)
        return _as_labels(found, first)

    def _on_source(self, data: Data, source: Grid) -> npt.NDArray[Any]:
        found, image = data[self.pred], data[self.image]
        if not isinstance(found, MetaTensor):
            found = MetaTensor(torch.as_tensor(found), meta=dict(image.meta))
        if found.ndim == 3:
            found = found[None]
        whole = tuple(found.shape[-3:]) == source.shape
        placed = whole if self._as_made else _on_grid(found, source)
        if not self._inverts and not placed:
            if found.shape[-3:] != image.shape[-3:]:
                raise ModelBroken("what the model found lies neither on the image's grid nor on the network's")
            found = self._inverted(image, found, nearest=True)
        if tuple(found.shape[-3:]) != source.shape:
            raise ModelBroken(f"what the model found has {tuple(found.shape[-3:])} voxels, the image {source.shape}")
        array: npt.NDArray[Any] = found.detach().cpu().numpy()
        return array

    def on_source(self, data: Data, field: Tensor, source: Grid) -> npt.NDArray[np.float32]:
        """A field (…) over the image that went into the network, (I, J, K) on the source's grid; 0 beyond it."""
        image = data[self.image]
        found = self._inverted(image, _beside(image, MetaTensor(field[None])), nearest=False)
        placed: npt.NDArray[np.float32] = found[0].cpu().numpy()
        if placed.shape != source.shape:
            raise ModelBroken(f"what was inverted has {placed.shape} voxels, the image {source.shape}")
        return placed

    def _inverted(self, image: MetaTensor, found: MetaTensor, *, nearest: bool) -> MetaTensor:
        """`found` with what was done to `image` undone."""
        invert = Invertd(
            keys=self.pred,
            transform=Compose(self._steps),
            orig_keys=self.image,
            nearest_interp=nearest,
            to_tensor=True,
        )
        undone: MetaTensor = invert({self.image: image, self.pred: found.float()})[self.pred]
        return undone

    def _run(self, steps: Sequence[Any], data: Data, *, lazy: bool | None = None) -> Data:
        result: Data = Compose(steps, lazy=self._lazy if lazy is None else lazy)(data) if steps else data
        return result


def loaded(volume: Volume, *, channel_first: bool) -> MetaTensor:
    """An image as LoadImaged leaves it: float32; one channel is dropped unless `channel_first`."""
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


def numeric(output: Tensor) -> Tensor:
    """A network's answer. Raises ModelBroken if there is NaN in it, of which no mask can be made."""
    if bool(output.isnan().any()):
        raise ModelBroken("its network answers with NaN: its weights, or the intensities it is shown, are out of range")
    return output


def positions(points: Sequence[Point], source: Grid, image: MetaTensor) -> list[list[int]]:
    """The voxels of `image` in which the centres of source voxels lie."""
    if not points:
        return []
    placed = mm_to_index(image.affine.numpy().astype(np.float64), index_to_mm(source.affine, np.array(points)))
    top = np.array(image.shape[-3:]) - 1
    voxels: list[list[int]] = np.clip(np.rint(placed), 0, top).astype(int).tolist()
    return voxels


def _steps(transforms: Any) -> tuple[list[Any], bool | None]:
    """The transforms in a Compose, a list or alone, one after the other."""
    if transforms is None:
        return [], False
    if isinstance(transforms, Compose):
        return list(transforms.flatten().transforms), transforms.lazy
    if isinstance(transforms, (list, tuple)):
        return list(Compose(list(transforms)).flatten().transforms), False
    return [transforms], False


def _loads_channel_first(steps: Sequence[Any], image: str) -> bool:
    """Whether what LoadImaged made has a channel of its own even if there is only one."""
    if any(isinstance(step, (EnsureChannelFirst, EnsureChannelFirstd)) for step in steps):
        return False
    loaders = [step for step in steps if isinstance(step, LoadImaged) and image in step.keys]
    return not loaders or any(step._loader.ensure_channel_first for step in loaders)


def _on_grid(found: MetaTensor, source: Grid) -> bool:
    return same_grid(tuple(found.shape[-3:]), found.affine.numpy(), source.shape, source.affine)


def _beside(image: MetaTensor, found: MetaTensor) -> MetaTensor:
    """`found` as lying where `image` does, by the same steps."""
    found.meta = dict(image.meta)
    found.applied_operations = list(image.applied_operations)
    return found


def _as_labels(found: npt.NDArray[Any], first: int) -> Labels:
    """(C, I, J, K) as one label map: one channel as it is; of several, the smallest that holds a voxel gives the value,
    since a structure within another is smaller."""
    if len(found) == 1:
        array = np.rint(np.nan_to_num(found[0], nan=0))
        if array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ModelBroken(f"label values go from 0 to 255, not from {array.min()} to {array.max()}")
        return np.asfortranarray(array.astype(np.uint8))
    labels = np.zeros(found.shape[1:], dtype=np.uint8, order="F")
    inside = found[1 - first :] > 0.5  # background lies below whatever its size
    for index in from_below([float(channel.sum()) for channel in inside]):
        labels[inside[index]] = index + 1
    return labels
