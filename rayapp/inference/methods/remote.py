"""RemoteTask: a model that another server runs, asked over the Open Inference Protocol (Triton, KServe, …).

What is sent, on a grid turned to canonical RAS axes, with voxels of `spacing` or the image's own:

    image          FP32  (1, C, R, A, S)   the file's values; 0 outside the image
    points         INT32 (1, N, 3)         only with `prompts`: voxels of that grid that were clicked
    point_labels   INT32 (1, N)            only with `prompts`: the label value of each; 0 for background

What is expected back is one output on the same grid: label values (1, R, A, S) or (1, 1, R, A, S), of whole numbers, or
logits (1, 1 + L, R, A, S), background first. It is put on the source's grid as an own network's answer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo
from rayapp.inference.methods.kserve import Array, InferenceServer
from rayapp.inference.network import restoration
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock


@dataclass(frozen=True, kw_only=True)
class Sendable:
    """An image as it is sent, (1, C, R, A, S) float32, and its grid."""

    image: Floats
    grid: NetworkGrid

    @property
    def nbytes(self) -> int:
        """Bytes of the image."""
        return self.image.nbytes


class RemoteTask:
    """A model behind an address.

    Args:
        server: where it is.
        labels: structure name to value, contiguous from 1.
        prompts: whether it takes clicks.
        channels: of the image, that it needs.
        spacing: mm of the voxels it is sent; 0 for each image's own.
        inputs: other names of `image`, `points` and `point_labels`; `output` is the one that is read.
    """

    def __init__(
        self,
        server: InferenceServer,
        *,
        labels: Mapping[str, int],
        description: str,
        prompts: bool = False,
        channels: int = 1,
        spacing: float = 0.0,
        inputs: Mapping[str, str] | None = None,
        output: str = "labels",
        version: str = "remote",
    ) -> None:
        self._server = server
        self._labels = {name: value for name, value in labels.items() if value}
        self._prompts = prompts
        self._channels = channels
        self._spacing = spacing
        self._inputs = {"image": "image", "points": "points", "point_labels": "point_labels", **(inputs or {})}
        self._output = output
        self._description = description
        self._loaded = False
        self.version = version

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows."""
        return TaskInfo(
            type="deepedit" if self._prompts else "segmentation",
            labels={BACKGROUND: 0, **self._labels} if self._prompts else self._labels,
            dimension=3,
            description=self._description,
            version=self.version,
        )

    def load(self) -> None:
        """Look whether the server has the model and these inputs and outputs, once. Raises ModelBroken."""
        if self._loaded:
            return
        said = self._server.metadata()
        wanted = {"inputs": list(self._inputs.values()) if self._prompts else [self._inputs["image"]]}
        for side, names in {**wanted, "outputs": [self._output]}.items():
            there = [str(tensor.get("name")) for tensor in said.get(side, [])]
            missing = [name for name in names if name not in there]
            if missing:
                raise ModelBroken(f"the remote model has no {side[:-1]} {missing[0]!r}; there are: {', '.join(there)}")
        self._loaded = True

    def prepare(self, volume: Volume) -> Sendable:
        """Turn and resample. Raises BadRequest if the model needs more channels than there are."""
        if volume.channels < self._channels:
            raise BadRequest(f"this model needs {self._channels} channels; this image has {volume.channels}")
        grid = NetworkGrid.fit(volume.shape, volume.affine, spacing_mm=self._spacing, limit=None, divisor=1)
        channels = [np.nan_to_num(grid.from_source(channel), nan=0.0) for channel in volume.array[: self._channels]]
        return Sendable(image=np.stack(channels)[None].astype(np.float32), grid=grid)

    def predict(self, prepared: Sendable, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:  # noqa: ARG002
        """Ask. Raises ModelBroken if the server does not answer as it should."""
        clock = StageClock()
        inputs: dict[str, Array] = {self._inputs["image"]: prepared.image}
        if self._prompts:
            points, values = self._clicked(prepared, prompts)
            inputs |= {self._inputs["points"]: points, self._inputs["point_labels"]: values}
        answer = self._server.infer(inputs, [self._output])[self._output]
        clock.stage("infer")
        labels = restoration.restore(self._margins(answer, prepared), prepared.grid, roi=prompts.roi)
        clock.stage("invert")
        return Prediction(labels=labels, seconds=clock.seconds)

    def _clicked(self, prepared: Sendable, prompts: Prompts) -> tuple[Array, Array]:
        values = {BACKGROUND: 0, **self._labels}
        only = next(iter(self._labels)) if len(self._labels) == 1 else None
        meant = prompts.label if prompts.label in self._labels else only
        clicks: list[tuple[Point, int]] = []
        for name, points in prompts.clicks.items():
            named = meant if name == FOREGROUND else name
            if named is None:
                names = ", ".join(self._labels)
                raise BadRequest(f"foreground clicks: name their structure in 'label', one of {names}")
            clicks += [(point, values[named]) for point in points]
        places = prepared.grid.positions([point for point, _ in clicks])
        whole = np.rint(np.array(places, dtype=np.float64).reshape(1, -1, 3)).astype(np.int32)
        return whole, np.array([[value for _, value in clicks]], dtype=np.int32)

    def _margins(self, answer: Array, prepared: Sendable) -> Floats:
        """(L, R, A, S), positive where a structure is."""
        shape, count = prepared.grid.padded, len(self._labels)
        if answer.shape == (1, 1 + count, *shape) and answer.dtype.kind == "f":
            return restoration.log_odds_margins(torch.from_numpy(answer[0].astype(np.float32)))
        if answer.shape in ((1, *shape), (1, 1, *shape)):
            found = answer.reshape(shape)
            margins = [np.where(found == value, 1.0, -1.0) for value in range(1, count + 1)]
            return np.stack(margins).astype(np.float32)
        raise ModelBroken(f"the remote model answers with shape {answer.shape}, not with labels or logits on {shape}")
