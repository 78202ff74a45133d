"""An app's model, as rayapp's `InferTask`: the app's task is called for each request with its options and clicks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.compat.network_infer import BasicInferTask
from rayapp.compat.peer_tasks import InferTask
from rayapp.compat.served_image import ServedImage, serving
from rayapp.compat.unavailable import PORTING
from rayapp.errors import ModelBroken
from rayapp.imaging.placement import read_label_map
from rayapp.imaging.volume import Grid, Volume
from rayapp.inference.arrays import Labels
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND

SERVED = ("segmentation", "deepedit", "deepgrow")
"""Kinds of models whose answer is a mask from clicks or none."""
STAGES = ("pre", "infer", "invert", "post", "write")


@dataclass(frozen=True, kw_only=True)
class ImageInMemory:
    """The image, whose memory the volume cache counts."""

    volume: Volume
    nbytes: int = 0


class PortedInfer:
    """A model of the app.

    Args:
        task: The app's task.
        name: The model's name.
        version: The version whose weights it has; empty for the app's own file.
    """

    def __init__(self, task: InferTask, name: str, version: str = "") -> None:
        self._task, self._name = task, name
        self._version = version

    @property
    def version(self) -> str:
        """The version of its weights; of a pipeline also those of its parts."""
        parts = {str(vars(part).get("_version", "")) for part in parts_of(self._task)} - {""}
        return "+".join(sorted({self._version, *parts} - {""}))

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`."""
        told = self._task.info()
        kind = str(getattr(told["type"], "value", told["type"]))
        if kind not in SERVED:
            raise ModelBroken(f"models of type {kind!r} are not served: {PORTING}")
        config = {key: value for key, value in (told.get("config") or {}).items() if _is_json(value)}
        return TaskInfo(
            type=kind,
            labels={} if kind == "deepgrow" else {name: place for place, name in enumerate(self._names, 1)},
            dimension=int(told.get("dimension") or 3),
            description=str(told.get("description") or self._name),
            config=config,
            version=self.version,
        )

    @property
    def _names(self) -> list[str]:
        """Structures in the order of the network's channels: by value if those are 1, 2, …, else as the app lists."""
        values = values_of(self._task.labels)
        return sorted(values, key=values.__getitem__) if is_contiguous(values) else list(values)

    def load(self) -> None:
        """Load the weights, also of a pipeline's parts.

        Raises:
            ModelBroken: If they cannot be loaded.
        """
        if not self._task.is_valid():
            raise ModelBroken("the app says that this model is not valid: its weights are missing")
        for part in (*parts_of(self._task), self._task):
            if isinstance(part, BasicInferTask):
                part.load()

    def prepare(self, volume: Volume) -> ImageInMemory:
        """The image as it is, since the app's transforms may depend on each request."""
        return ImageInMemory(volume=volume)

    def predict(self, prepared: ImageInMemory, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Call the app's task.

        Raises:
            ModelBroken: If it answers without a mask on the image's grid.
        """
        volume = prepared.volume
        path = str(volume.path or Path("image.nii"))
        request = {**config, **self._clicks(prompts), "model": self._name, "image": path}
        with serving(ServedImage(path=path, volume=volume)):
            answer = self._task(request)
        file, result = answer if isinstance(answer, tuple) and len(answer) == 2 else (None, {})
        labels = self._labels(file, result, volume)
        params = json.loads(json.dumps(dict(result), default=_plain)) if file is not None else {}
        seconds = params.pop("latencies", None)
        params.pop("label_names", None)
        if self.info.type == "deepgrow":
            labels = (labels > 0).astype(np.uint8)
            params["label_names"] = {prompts.label: 1} if prompts.label else {}
        return Prediction(labels=np.asfortranarray(labels), params=params, seconds=_stages(seconds))

    def _clicks(self, prompts: Prompts) -> dict[str, Any]:
        """Clicks by label in voxels of the image, and the label that is being annotated."""
        names = dict.fromkeys((*self._names, FOREGROUND, BACKGROUND, *prompts.clicks))
        clicks: dict[str, Any] = {name: [list(point) for point in prompts.clicks.get(name, ())] for name in names}
        return clicks | ({"label": prompts.label} if prompts.label else {})

    def _labels(self, file: Any, result: Mapping[str, Any], volume: Volume) -> Labels:
        if isinstance(file, (str, Path)):
            path = Path(file)
            try:
                grid = Grid(shape=volume.shape, affine=volume.affine)
                array = read_label_map(path, grid, max_bytes=max(volume.nbytes, 1) * 16).array
            finally:
                path.unlink(missing_ok=True)
        elif file is None and "pred" in result:
            array = np.asarray(result["pred"])
            array = array[0] if array.ndim == 4 else array
        else:
            raise ModelBroken(f"model {self._name!r} answered without a mask: {PORTING}")
        if array.shape != volume.shape:
            raise ModelBroken(f"model {self._name!r} answers with {array.shape} voxels for an image of {volume.shape}")
        return self._contiguous(array)

    def _contiguous(self, array: Any) -> Labels:
        """The mask with the values of `info`, if the app answers with its own values."""
        values = values_of(self._task.labels)
        highest = int(array.max(initial=0))
        if is_contiguous(values) or highest <= len(values):
            return np.asarray(array, dtype=np.uint8)
        table = np.zeros(highest + 1, np.uint8)
        for place, name in enumerate(self._names, 1):
            if values[name] <= highest:
                table[values[name]] = place
        named: Labels = table[np.asarray(array, dtype=np.intp)]
        return named

    def of_version(self, version: str, weights: Path) -> PortedInfer:
        """The same model with other weights."""
        task = copy(self._task)
        if isinstance(task, BasicInferTask):
            task.path = [str(weights)]
        return PortedInfer(task, self._name, version)


def parts_of(task: InferTask) -> Iterator[InferTask]:
    """The tasks that a pipeline holds, the innermost first."""
    for value in vars(task).values():
        if isinstance(value, InferTask):
            yield from parts_of(value)
            yield value


def values_of(labels: Any) -> dict[str, int]:
    """Value by structure name, without background, of a model's labels as apps write them."""
    named = labels if isinstance(labels, Mapping) else {name: place for place, name in enumerate(labels or (), 1)}
    kept = {str(name): value for name, value in named.items() if str(name).lower() != BACKGROUND}
    if all(isinstance(value, int) for value in kept.values()) and isinstance(labels, Mapping):
        return kept
    return {name: place for place, name in enumerate(kept, 1)}


def is_contiguous(values: Mapping[str, int]) -> bool:
    """True for the values 1, 2, …, n."""
    return sorted(values.values()) == list(range(1, len(values) + 1))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    """A numpy or torch value as plain JSON; other objects as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _stages(latencies: Any) -> dict[str, float]:
    """Seconds by stage of the reply, of an app's latencies."""
    told = latencies if isinstance(latencies, Mapping) else {}
    return {name: float(told[name]) for name in STAGES if isinstance(told.get(name), (int, float))}
