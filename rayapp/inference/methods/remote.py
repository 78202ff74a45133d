"""RemoteTask: a model on another server, called over the Open Inference Protocol (Triton, KServe, …).

Inputs, on a grid with canonical RAS axes and voxels of `spacing` or of the image's own size:

    image          FP32  (1, C, R, A, S)   the file's intensities; 0 outside the image
    points         INT32 (1, N, 3)         with `prompts` only: clicked voxels of that grid
    point_labels   INT32 (1, N)            with `prompts` only: each click's label value; 0 for background

The output is on the same grid: label values (1, R, A, S) or (1, 1, R, A, S) as whole numbers, or logits
(1, 1 + L, R, A, S), background first. It is restored to the source grid like that of a local network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Labels
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo
from rayapp.inference.methods.kserve import MAX_BODY, Array, InferenceServer
from rayapp.inference.network import restoration
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock


@dataclass(frozen=True, kw_only=True)
class RemoteInput:
    """An image as it is sent.

    Attributes:
        image: Shape (1, C, R, A, S), float32.
        grid: Mapping from the source grid to that of `image`.
    """

    image: Floats
    grid: NetworkGrid

    @property
    def nbytes(self) -> int:
        """Memory of the image in bytes."""
        return self.image.nbytes


class RemoteTask:
    """A model on another server.

    Args:
        server: The server.
        labels: Structure name to value, contiguous from 1.
        description: One sentence for the annotator.
        prompts: Whether the model takes clicks.
        channels: Number of image channels that the model needs.
        spacing: Spacing in mm of the image that is sent; 0 for the image's own voxels.
        inputs: Names of the inputs `image`, `points` and `point_labels` on the server, where they differ.
        output: Name of the output.
        version: Version that clients are shown.
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
        """The model's entry in `/info/`."""
        return TaskInfo(
            type="deepedit" if self._prompts else "segmentation",
            labels={BACKGROUND: 0, **self._labels} if self._prompts else self._labels,
            dimension=3,
            description=self._description,
            version=self.version,
        )

    def load(self) -> None:
        """Check that the server has the model with these inputs and this output; later calls do nothing.

        Raises:
            ModelBroken: If it does not, or does not answer.
        """
        if self._loaded:
            return
        metadata = self._server.metadata()
        needed = {"inputs": list(self._inputs.values()) if self._prompts else [self._inputs["image"]]}
        for side, names in {**needed, "outputs": [self._output]}.items():
            available = [str(tensor.get("name")) for tensor in metadata.get(side, [])]
            missing = [name for name in names if name not in available]
            if missing:
                listed = ", ".join(available)
                raise ModelBroken(f"the remote model has no {side[:-1]} {missing[0]!r}; there are: {listed}")
        self._loaded = True

    def prepare(self, volume: Volume) -> RemoteInput:
        """Reorient and resample an image.

        Raises:
            BadRequest: If the image has fewer channels than the model needs, or exceeds `MAX_BODY` as it is sent.
        """
        if volume.channels < self._channels:
            raise BadRequest(f"this model needs {self._channels} channels; this image has {volume.channels}")
        grid = NetworkGrid.fit(volume.shape, volume.affine, spacing_mm=self._spacing, limit=None, divisor=1)
        if (size := 4 * self._channels * math.prod(grid.padded)) > MAX_BODY:
            voxels = "x".join(map(str, grid.padded))
            raise BadRequest(
                f"this model gets the image as {voxels} voxels, {size >> 20} MiB, and at most {MAX_BODY >> 20} MiB can "
                "be sent: crop the image, or give the model a coarser spacing"
            )
        channels = [np.nan_to_num(grid.from_source(channel), nan=0.0) for channel in volume.array[: self._channels]]
        return RemoteInput(image=np.stack(channels)[None].astype(np.float32), grid=grid)

    def predict(self, prepared: RemoteInput, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:  # noqa: ARG002
        """Call the server and restore its answer to the source grid.

        Raises:
            ModelBroken: If the server does not answer, or with something else than expected.
            BadRequest: For `foreground` clicks of which the structure is ambiguous.
        """
        clock = StageClock()
        inputs: dict[str, Array] = {self._inputs["image"]: prepared.image}
        if self._prompts:
            points, values = self._points(prepared, prompts)
            inputs |= {self._inputs["points"]: points, self._inputs["point_labels"]: values}
        output = self._server.infer(inputs, [self._output])[self._output]
        clock.stage("infer")
        labels = self._restored(output, prepared, prompts)
        clock.stage("invert")
        return Prediction(labels=labels, params=prepared.grid.remarks, seconds=clock.seconds)

    def _points(self, prepared: RemoteInput, prompts: Prompts) -> tuple[Array, Array]:
        """Clicks as the inputs `points` and `point_labels`."""
        values = {BACKGROUND: 0, **self._labels}
        only = next(iter(self._labels)) if len(self._labels) == 1 else None
        foreground = prompts.label if prompts.label in self._labels else only
        clicks: list[tuple[Point, int]] = []
        for name, points in prompts.clicks.items():
            structure = foreground if name == FOREGROUND else name
            if structure is None:
                names = ", ".join(self._labels)
                raise BadRequest(f"foreground clicks are ambiguous: name their structure in 'label', one of {names}")
            clicks += [(point, values[structure]) for point in points]
        positions = prepared.grid.positions([point for point, _ in clicks])
        voxels = np.rint(np.array(positions, dtype=np.float64).reshape(1, -1, 3)).astype(np.int32)
        return voxels, np.array([[value for _, value in clicks]], dtype=np.int32)

    def _restored(self, output: Array, prepared: RemoteInput, prompts: Prompts) -> Labels:
        """The answer, logits or label values, as a label map on the source grid."""
        shape, count = prepared.grid.padded, len(self._labels)
        if output.shape == (1, 1 + count, *shape) and output.dtype.kind == "f":
            log_odds = restoration.log_odds(torch.from_numpy(output[0].astype(np.float32)))
            return restoration.restore(log_odds, prepared.grid, roi=prompts.roi)
        if output.shape in ((1, *shape), (1, 1, *shape)):
            values = output.reshape(shape)
            labels = np.where((values > 0) & (values <= count), values, 0).astype(np.uint8)
            return restoration.restore_labels(labels, prepared.grid, roi=prompts.roi)
        raise ModelBroken(f"the remote model answers with shape {output.shape}, not with labels or logits on {shape}")
