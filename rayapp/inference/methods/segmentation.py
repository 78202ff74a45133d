"""SegmentationTask: automatic segmentation of all structures by any MONAI network."""

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
from rayapp.inference.network.network_grid import MAX_LOGITS, NetworkGrid
from rayapp.inference.network.normalisation import normalise
from rayapp.inference.network.sliding_window import OVERLAP, Windows
from rayapp.inference.stage_clock import StageClock
from rayapp.models.store import ModelVersion
from rayapp.protocol import parse_flag

MAX_STRUCTURES = 254
"""Largest number of structures: their values fit uint8 without 255, which viewers read as "keep this voxel"."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """A normalised image on the network grid.

    Attributes:
        grid: Mapping from the source grid to the network grid.
        image: Shape (C, *grid.padded), float32, on the network's device.
        body: Midpoint and half-width of the range in which most intensities lie after normalisation.
    """

    grid: NetworkGrid
    image: Tensor
    body: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def nbytes(self) -> int:
        """Memory of the image in bytes."""
        return self.image.nbytes

    @property
    def extent(self) -> Shape:
        """Voxels along R, A, S that show the image; the rest is padding."""
        return self.grid.canonical

    def levels(self, field: Floats) -> Labels:
        """A field of values from 0 to 1 on the source grid; see `restoration.restore_levels`."""
        return restoration.restore_levels(field, self.grid)

    def millilitres(self, volume: Volume) -> float:
        """Volume in ml of one voxel of the network grid.

        Args:
            volume: The source image.
        """
        total = abs(float(np.linalg.det(volume.affine[:3, :3]))) * float(np.prod(volume.shape))
        return total / float(np.prod(self.grid.resampled)) / 1000


class SegmentationTask:
    """Automatic segmentation, with a sliding window if the image exceeds the network's window.

    Args:
        name: The model's name, for error messages.
        weights: The safetensors file.
        labels: Structure name to value, contiguous from 1. The network's output channels are background, then the
            structures in this order.
        network: The network's class and arguments, as `rayapp.models.networks.build` takes them.
        spacing: Network spacing in mm, one number or one along each of R, A, S; 0 keeps the image's own voxels.
        roi_size: The network's window in voxels along R, A, S.
        overlap: Overlap of neighbouring windows, as a share of the window's size.
        windows: Number of windows in one forward pass.
        precision: "float32" to compute in float32 even if the hardware supports bfloat16.
        intensities: The range of the image's values that the network sees as -1 to 1; None for percentiles of each.
        description: One sentence for the annotator.
        version: The model version's name.
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
        intensities: Sequence[float] | None = None,
        description: str = "",
        version: str = "",
    ) -> None:
        self._name = name
        self._intensities = intensities
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
        """Create the task that a model version's card describes.

        Raises:
            ModelBroken: If the card lacks something.
        """
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
                intensities=card.get("intensities"),
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
        """The model's entry in `/info/`."""
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
        """Load the weights; later calls do nothing.

        Raises:
            ModelBroken: If they do not fit the network; names the file.
        """
        self._network.load()

    def prepare(self, volume: Volume) -> PreparedImage:
        """Reorient, resample and normalise an image.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        return self._prepare(volume, limit=None)

    def _prepare(self, volume: Volume, limit: Sequence[int] | None) -> PreparedImage:
        grid = NetworkGrid.fit(
            volume.shape,
            volume.affine,
            spacing_mm=self._spacing,
            limit=limit,
            divisor=self._network.divisor,
            max_voxels=MAX_LOGITS // (len(self._structures) + 1),
        )
        image = torch.from_numpy(self._normalised(volume, grid.from_source))
        return PreparedImage(grid=grid, image=image.to(self._network.device))

    def _normalised(self, volume: Volume, resample: Callable[[npt.NDArray[Any]], Floats]) -> Floats:
        """The network's input channels, each resampled by `resample` and normalised."""
        if volume.channels < self._channels:
            raise BadRequest(f"model {self._name!r} needs {self._channels} channels; this image has {volume.channels}")
        channels = volume.array[: self._channels]
        return np.stack([normalise(resample(channel), self._intensities) for channel in channels])

    def log_odds(self, prepared: PreparedImage) -> Floats:
        """Log-odds of each structure over background, (L, *grid.padded)."""
        return restoration.log_odds(self._infer(prepared.image[None])[0])

    def predict(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment an image. Of the prompts only `roi` is used: everything outside it is background."""
        clock = StageClock()
        log_odds = self.log_odds(prepared)
        clock.stage("infer")
        labels = restoration.restore(log_odds, prepared.grid, roi=prompts.roi)
        clock.stage("invert")
        if parse_flag(config.get("largest_cc"), "largest_cc"):
            labels = restoration.keep_largest_component(labels)
        clock.stage("post")
        return Prediction(labels=labels, params=prepared.grid.remarks, seconds=clock.seconds)

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> PreparedImage:
        """The network's input for an image without prompts."""
        return self.prepare(volume)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 1 + L, *shape), background first, of normalised images (N, C, *shape)."""
        return torch.softmax(self._infer(self._with_empty_guidance(images)), dim=1)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """Monte Carlo dropout; see `rayapp.inference.network.network.dropout`."""
        return self._network.dropout(probability)

    def _with_empty_guidance(self, images: Tensor) -> Tensor:
        """Images with guidance channels that show no clicks."""
        return functional.pad(images, (0, 0) * 3 + (0, self._guidance_channels))

    @torch.inference_mode()
    def _infer(self, images: Tensor) -> Tensor:
        """Logits (N, 1 + L, *shape) of whole images (N, C, *shape)."""
        return self._windows.run(self._network, images)


def _structures(name: str, labels: Mapping[str, int]) -> dict[str, int]:
    """`labels` without background, sorted by value, which must be contiguous from 1."""
    structures = {label: int(value) for label, value in sorted(labels.items(), key=lambda item: item[1]) if value}
    if list(structures.values()) != list(range(1, len(structures) + 1)) or not 0 < len(structures) <= MAX_STRUCTURES:
        raise ModelBroken(
            f"model {name!r}: label values must be contiguous from 1 to at most {MAX_STRUCTURES}: {dict(labels)}"
        )
    return structures
