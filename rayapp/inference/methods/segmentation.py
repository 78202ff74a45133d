"""SegmentationTask: every structure of an image at once, by any MONAI network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Labels, Shape
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.network import restoration
from rayapp.inference.network.network import Network
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.network.normalisation import normalise
from rayapp.inference.network.sliding_window import OVERLAP, Windows
from rayapp.inference.stage_clock import StageClock
from rayapp.models.store import ModelVersion
from rayapp.protocol import parse_flag

MAX_STRUCTURES = 254
"""Label values that fit uint8 without 255, which viewers read as "leave this voxel"."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """A normalised image, (C, *grid.padded), float32, on the network's device."""

    grid: NetworkGrid
    image: Tensor
    body: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """The middle and half the range of most intensities, as `normalise` makes them."""

    @property
    def nbytes(self) -> int:
        """Bytes the image holds."""
        return self.image.nbytes

    @property
    def extent(self) -> Shape:
        """Voxels along R, A, S that show the image; behind these is padding."""
        return self.grid.canonical

    def levels(self, field: Floats) -> Labels:
        """See `pipeline.restore_levels`."""
        return restoration.restore_levels(field, self.grid)

    def millilitres(self, volume: Volume) -> float:
        """Of one voxel of the grid, which covers `volume`."""
        whole = abs(float(np.linalg.det(volume.affine[:3, :3]))) * float(np.prod(volume.shape))
        return whole / float(np.prod(self.grid.resampled)) / 1000


class SegmentationTask:
    """Automatic segmentation, with a sliding window where the image's grid exceeds the window.

    Args:
        name: the model's name, for messages.
        weights: the safetensors file.
        labels: structure name to value, contiguous from 1; the network's channels in this order, background first.
        network: as `rayapp.models.networks.build` takes it.
        spacing: mm of the network's voxels, one number or one along each of R, A, S; 0 keeps each image's own.
        roi_size: voxels along R, A, S that the network sees at once.
        overlap, windows: of neighbouring windows, and how many the network takes together.
        precision: "float32" where bfloat16 is not wanted even if the hardware has it.
        version: the model version's name.
    """

    type = "segmentation"
    dimension = 3

    def __init__(
        self,
        *,
        name: str,
        weights: Path,
        labels: Mapping[str, int],
        network: Mapping[str, Any],
        spacing: float | Sequence[float],
        roi_size: Sequence[int],
        overlap: float = OVERLAP,
        windows: int = 1,
        precision: str = "bfloat16",
        description: str = "",
        version: str = "",
    ) -> None:
        self._name = name
        self._structures = _structures(name, labels)
        self._channels = max(1, int(network.get("in_channels", 1)) - self._guidance_channels)
        self._spacing = spacing
        self._roi_size = tuple(int(n) for n in roi_size)
        self._windows = Windows(roi_size=self._roi_size, overlap=overlap, batch_size=windows)
        self._description = description
        self._version = version
        self._network = Network(
            name=name,
            config=network,
            weights=weights,
            channels=(self._channels + self._guidance_channels, len(self._structures) + 1),
            precision=precision,
        )

    @classmethod
    def from_version(cls, version: ModelVersion) -> Self:
        """The task as a model version's card describes it. Raises ModelBroken if the card lacks something."""
        card = version.card
        try:
            windows = Windows.of(card)
            return cls(
                name=version.name,
                weights=version.weights,
                labels=card["labels"],
                network=card["network"],
                spacing=card["spacing"],
                roi_size=windows.roi_size,
                overlap=windows.overlap,
                windows=windows.batch_size,
                precision=card.get("precision", "bfloat16"),
                description=card.get("description", ""),
                version=version.version,
            )
        except KeyError as error:
            raise ModelBroken(f"model {version.name!r}: its card has no {error}") from error

    @property
    def _guidance_channels(self) -> int:
        return 0

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows."""
        return TaskInfo(
            type=self.type,
            labels=self._labels,
            dimension=self.dimension,
            description=self._description,
            config={"device": [self._network.device_name], "largest_cc": False},
            version=self._version,
        )

    @property
    def _labels(self) -> dict[str, int]:
        return dict(self._structures)

    @property
    def version(self) -> str:
        """The model version's name."""
        return self._version

    def load(self) -> None:
        """Load the weights, once. Raises ModelBroken naming the file."""
        self._network.load()

    def prepare(self, volume: Volume) -> PreparedImage:
        """Orient, resample and normalise. Raises BadRequest if the network needs more channels than there are."""
        return self._prepare(volume, limit=None)

    def _prepare(self, volume: Volume, limit: Sequence[int] | None) -> PreparedImage:
        grid = NetworkGrid.fit(
            volume.shape, volume.affine, spacing_mm=self._spacing, limit=limit, divisor=self._network.divisor
        )
        image = torch.from_numpy(self._normalised(volume, grid.from_source))
        return PreparedImage(grid=grid, image=image.to(self._network.device))

    def _normalised(self, volume: Volume, sample: Callable[[npt.NDArray[Any]], Floats]) -> Floats:
        """The channels that the network sees, each brought to its grid by `sample`."""
        if volume.channels < self._channels:
            raise BadRequest(f"model {self._name!r} needs {self._channels} channels; this image has {volume.channels}")
        return np.stack([normalise(sample(channel)) for channel in volume.array[: self._channels]])

    def margins(self, prepared: PreparedImage) -> Floats:
        """By how much each structure leads its best rival, (L, *grid.padded), in log-odds."""
        return restoration.log_odds_margins(self._infer(prepared.image[None])[0])

    def predict(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment; of the prompts only `roi` matters: outside it all is background."""
        clock = StageClock()
        margins = self.margins(prepared)
        clock.stage("infer")
        return self._finish(margins, prepared.grid, prompts, config, clock)

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> PreparedImage:
        """The image as the network takes it when nobody has pointed at anything."""
        return self.prepare(volume)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Of background and each structure by value, (N, 1 + L, *shape), in normalised images (N, C, *shape)."""
        return torch.softmax(self._infer(self._unprompted(images)), dim=1)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """See `Network.dropout`."""
        return self._network.dropout(probability)

    def _unprompted(self, images: Tensor) -> Tensor:
        """As the network takes them when nobody clicked."""
        return functional.pad(images, (0, 0) * 3 + (0, self._guidance_channels))

    @torch.inference_mode()
    def _infer(self, images: Tensor) -> Tensor:
        """Logits of whole images."""
        return self._windows.run(self._network, images)

    def _finish(
        self, margins: Floats, grid: NetworkGrid, prompts: Prompts, config: Mapping[str, Any], clock: StageClock
    ) -> Prediction:
        labels = restoration.restore(margins, grid, roi=prompts.roi)
        clock.stage("invert")
        if parse_flag(config.get("largest_cc"), "largest_cc"):
            labels = restoration.keep_largest_component(labels)
        clock.stage("post")
        return Prediction(labels=labels, seconds=clock.seconds)


def _structures(name: str, labels: Mapping[str, int]) -> dict[str, int]:
    """`labels` without background, by value. Raises ModelBroken unless values run from 1 without a gap."""
    structures = {label: int(value) for label, value in sorted(labels.items(), key=lambda item: item[1]) if value}
    if list(structures.values()) != list(range(1, len(structures) + 1)) or not 0 < len(structures) <= MAX_STRUCTURES:
        raise ModelBroken(f"model {name!r}: label values must run from 1 to at most {MAX_STRUCTURES}: {dict(labels)}")
    return structures
