"""Uncertainty of a network's prediction for an image, from several samples of the prediction.

Test-time augmentation samples predictions for several views of the image; it measures aleatoric uncertainty, which is
inherent in the data (Wang et al., 2019). Monte Carlo dropout samples predictions of several subnetworks; it measures
epistemic uncertainty, which more training data would reduce (Gal and Ghahramani, 2016). Samples are accumulated in
running moments, so memory does not grow with their number. All arrays are on the network's grid, (R, A, S). Pure, apart
from the network's dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayapp.active_learning.views import View
from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Labels
from rayapp.inference.infer_task import TaskInfo

REGION = 0.05
"""Least mean probability of a structure in the region over which its uncertainty is averaged. Far from all structures
every network is certain, and the size of that background must not influence the mean."""
POOL_SIZE = 4
"""Boxes along each axis that `descriptor` averages in."""


class NetworkInput(Protocol):
    """An image on its network's grid, without prompts."""

    @property
    def image(self) -> Tensor:
        """(C, *shape), on the network's device."""

    @property
    def extent(self) -> tuple[int, int, int]:
        """Size of the image along each axis, in voxels; the voxels beyond are padding."""

    @property
    def body(self) -> tuple[float, float]:
        """Middle and half the range of the body's intensities, see `View`."""

    def levels(self, field: Floats) -> Labels:
        """A field with values from 0 to 1 over `extent`, on the source image's grid, (I, J, K), scaled to 255."""

    def millilitres(self, volume: Volume) -> float:
        """Volume of one voxel of the network's grid, given the source image."""


class SamplableTask(Protocol):
    """An inference task whose predictions can be sampled."""

    @property
    def info(self) -> TaskInfo:
        """The task's info; structures have values from 1."""

    def network_input(self, volume: Volume) -> NetworkInput:
        """The image on the network's grid."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (N, 1 + L, *shape), background first, for images (N, C, *shape) without prompts."""

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """A context in which `probabilities` drops random units with this probability."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures of uncertainty for all structures of an image together, or for one structure. None if it is nowhere.

    Attributes:
        entropy: Predictive entropy in nats, averaged over the region in which the structure may be (`REGION`).
        mutual_information: Mutual information between class and sample in nats, averaged over the same region (BALD;
            Houlsby et al., 2011).
        variance: Variance of the probability, averaged over the same region.
        volume_variation: Coefficient of variation of the samples' volumes: standard deviation over mean.
        dice: Dice score of all pairs of samples, pooled: twice the sum of overlaps over the sum of sizes.
        voxels: Mean of the samples' volumes, in voxels of the network's grid.
    """

    entropy: float | None
    mutual_information: float | None
    variance: float | None
    volume_variation: float | None
    dice: float | None
    voxels: float


class Moments:
    """Running moments of samples.

    Mean and sum of squares of the probabilities (Welford, 1962), the mean of their entropies, votes for each class, and
    volumes. A sample equal to all before it changes no value, not even in the last bit.
    """

    def __init__(self, classes: int, shape: Sequence[int]) -> None:
        """Moments of no sample.

        Args:
            classes: Number of classes, including background.
            shape: Shape of the samples' grid.
        """
        self.count = 0
        self._mean = torch.zeros(classes, *shape)
        self._squares = torch.zeros(classes, *shape)
        self._entropy = torch.zeros(*shape)
        self._votes = torch.zeros(classes - 1, *shape, dtype=torch.int16)
        self._volumes = np.zeros(classes), np.zeros(classes)
        """Mean and sum of squares of the structures' volumes in voxels; index 0 is for all structures together."""

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes, which does not depend on the number of samples."""
        return sum(t.nbytes for t in (self._mean, self._squares, self._entropy, self._votes))

    @torch.inference_mode()
    def add(self, probabilities: Tensor) -> None:
        """Add a sample of probabilities, (classes, *shape)."""
        probabilities = probabilities.to("cpu", torch.float32)
        self.count += 1
        delta = probabilities - self._mean
        self._mean.add_(delta / self.count)
        self._squares.addcmul_(delta, probabilities - self._mean)
        self._entropy.add_((entropy_of(probabilities) - self._entropy) / self.count)
        winner = probabilities.argmax(dim=0)
        volumes = np.empty(len(probabilities))
        for value, votes in enumerate(self._votes, start=1):
            won = winner == value
            votes += won
            volumes[value] = int(won.sum())
        volumes[0] = volumes[1:].sum()
        mean, squares = self._volumes
        deviation = volumes - mean
        mean += deviation / self.count
        squares += deviation * (volumes - mean)

    @property
    def mean(self) -> Tensor:
        """Mean probabilities, (classes, *shape)."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Variance of the probabilities over samples, (classes, *shape)."""
        return self._squares / max(1, self.count)

    @property
    def entropy(self) -> Tensor:
        """Predictive entropy in nats, (*shape): the entropy of the mean probabilities."""
        return entropy_of(self._mean)

    @property
    def mutual_information(self) -> Tensor:
        """Mutual information between a voxel's class and the sample in nats, (*shape): the predictive entropy minus the
        samples' mean entropy."""
        return (self.entropy - self._entropy).clamp_(min=0)

    def image(self) -> Measures:
        """Measures of all structures together."""
        return self._measures(1 - self._mean[0], self.variance.sum(dim=0), self._votes, 0)

    def structure(self, value: int) -> Measures:
        """Measures of one structure, by its value from 1."""
        return self._measures(self._mean[value], self.variance[value], self._votes[value - 1 : value], value)

    def _measures(self, probability: Tensor, variance: Tensor, votes: Tensor, volume: int) -> Measures:
        region = probability >= REGION
        fields = (self.entropy, self.mutual_information, variance)
        means = [float(field[region].double().mean()) if region.any() else None for field in fields]
        mean, squares = (float(moment[volume]) for moment in self._volumes)
        # A voxel with v votes lies in the overlap of v (v - 1) ordered pairs: one count gives all pairs exactly.
        counts = votes.double()
        size = (self.count - 1) * float(counts.sum())
        overlap = float((counts * (counts - 1)).sum())
        return Measures(
            entropy=means[0],
            mutual_information=means[1],
            variance=means[2],
            volume_variation=math.sqrt(squares / self.count) / mean if mean else None,
            dice=overlap / size if size else None,
            voxels=mean,
        )


@torch.inference_mode()
def entropy_of(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the first axis, in nats."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=0)
    return entropy


def sample_views(task: SamplableTask, image: Tensor, views: Sequence[View], *, batch: int = 1) -> Iterator[Tensor]:
    """Samples by test-time augmentation.

    Args:
        task: The inference task.
        image: The image, (C, *shape).
        views: One view for each sample.
        batch: Number of views that the network predicts at once.

    Yields:
        Probabilities on the image's own axes, (1 + L, *shape).
    """
    for start in range(0, len(views), batch):
        chunk = views[start : start + batch]
        predictions = task.probabilities(torch.stack([view.apply(image) for view in chunk]))
        for view, prediction in zip(chunk, predictions, strict=True):
            yield view.invert(prediction)


def sample_dropout(
    task: SamplableTask, image: Tensor, count: int, *, probability: float, seed: int, batch: int = 1
) -> Iterator[Tensor]:
    """Samples by Monte Carlo dropout; equal seeds give equal samples.

    Args:
        task: The inference task.
        image: The image, (C, *shape).
        count: Number of samples.
        probability: Probability with which a unit is dropped.
        seed: Seed of the dropout.
        batch: Number of samples that the network predicts at once.

    Yields:
        Probabilities, (1 + L, *shape).
    """
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices), task.dropout(probability):
        torch.manual_seed(seed)
        for start in range(0, count, batch):
            size = min(batch, count - start)
            yield from task.probabilities(image[None].expand(size, *image.shape))


def moments_of(samples: Iterator[Tensor], image: NetworkInput) -> Moments:
    """The moments of samples of an image, without the padding.

    Raises:
        BadRequest: If there is no sample.
    """
    within = tuple(slice(n) for n in image.extent)
    moments: Moments | None = None
    for sample in samples:
        inside = sample[(slice(None), *within)]
        moments = moments or Moments(len(inside), inside.shape[1:])
        moments.add(inside)
    if moments is None:
        raise BadRequest("uncertainty needs at least one sample: raise the option 'samples'")
    return moments


def uncertainty_levels(moments: Moments, image: NetworkInput) -> Labels:
    """The predictive entropy on the source image's grid, (I, J, K), uint8: 255 where all classes are equally likely."""
    field: Floats = (moments.entropy / math.log(len(moments.mean))).numpy()
    return image.levels(field)


def slice_sums(levels: Labels) -> tuple[npt.NDArray[np.float32], ...]:
    """The uncertainty of each slice across i, j and k.

    Args:
        levels: Uncertainty levels from 0 to 255, (I, J, K).

    Returns:
        Three arrays, of lengths I, J and K: the sum of levels / 255 over each slice's voxels.
    """
    return tuple(
        (levels.sum(axis=others, dtype=np.uint64) / 255).astype(np.float32) for others in ((1, 2), (0, 2), (0, 1))
    )


def most_uncertain_slices(sums: npt.NDArray[np.floating], count: int) -> list[int]:
    """The most uncertain slices along an axis, at least a twentieth of the axis apart.

    Args:
        sums: The uncertainty of each slice, as `slice_sums` gives it.
        count: Number of slices at most.

    Returns:
        Slice indices, most uncertain first.
    """
    remaining = np.array(sums, dtype=np.float64)
    distance = max(1, len(remaining) // 20)
    slices: list[int] = []
    while len(slices) < count and remaining.size and remaining.max() > 0:
        index = int(remaining.argmax())
        slices.append(index)
        remaining[max(0, index - distance) : index + distance + 1] = 0
    return slices


@torch.inference_mode()
def descriptor(image: Tensor) -> Floats:
    """A coarse feature vector of an image (C, *shape): mean and standard deviation of its first channel in `POOL_SIZE`
    boxes along each axis. It needs no network, so that it is comparable over images scored by different versions."""
    channel = image[:1].float()
    mean = torch.nn.functional.adaptive_avg_pool3d(channel, POOL_SIZE)
    square = torch.nn.functional.adaptive_avg_pool3d(channel.square(), POOL_SIZE)
    deviation = (square - mean.square()).clamp_(min=0).sqrt_()
    pooled: Floats = torch.cat([mean.flatten(), deviation.flatten()]).cpu().numpy()
    return pooled
