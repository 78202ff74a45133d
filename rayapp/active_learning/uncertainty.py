"""Uncertainty: how sure a network is of an image, from several samples of what it makes of it.

Two kinds of samples: test-time augmentation asks about the image in several views, and measures what the data leave
open (aleatoric; Wang et al. 2019); Monte-Carlo dropout asks several networks that one is, and measures what the
training left open (epistemic; Gal and Ghahramani 2016). Samples are folded into running moments as they come, so that
memory does not grow with their number. All on the network's grid, (R, A, S); pure but for the network's dropout.
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
"""Where a structure has at least this mean probability its uncertainty counts: far from all structures every network
is sure, and the size of that far part says nothing."""
POOLED = 4
"""Boxes along each axis that `descriptor` averages in."""


class NetworkInput(Protocol):
    """An image on its network's grid, nobody having pointed at anything."""

    @property
    def image(self) -> Tensor:
        """(C, *shape), on the network's device."""

    @property
    def extent(self) -> tuple[int, int, int]:
        """Voxels along each axis, from the first, that show the image; what lies behind is padding."""

    @property
    def body(self) -> tuple[float, float]:
        """The middle and half the range of most intensities, as views take them."""

    def levels(self, field: Floats) -> Labels:
        """A field from 0 to 1 over `extent`, on the source's grid (I, J, K): 255 for 1."""

    def millilitres(self, volume: Volume) -> float:
        """Of one voxel of the network's grid, given the source."""


class Sampled(Protocol):
    """A task that can be sampled: the seam to `rayapp.inference`."""

    @property
    def info(self) -> TaskInfo:
        """Its labels, by value from 1."""

    def network_input(self, volume: Volume) -> NetworkInput:
        """The image as the network takes it."""

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, 1 + L, *shape), background first, for images (N, C, *shape) without prompts."""

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """Within it, calls of `probabilities` differ by what the network drops."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Of an image, or of one structure. None where nothing was found to measure.

    `entropy` (predictive) and `mutual_information` (BALD, Houlsby et al. 2011) are in nats, and, as `variance` of the
    probability, means over where the structure may be (`REGION`). `volume_variation` is the standard deviation of the
    samples' volumes over their mean. `dice` is that of all pairs of samples, pooled: twice the sum of their overlaps
    over the sum of their sizes, which one count of votes per voxel gives exactly, however many samples there are.
    """

    entropy: float | None
    mutual_information: float | None
    variance: float | None
    volume_variation: float | None
    dice: float | None
    voxels: float
    """The mean of the samples' volumes, in voxels of the network's grid."""


class Moments:
    """Samples folded into a running mean and sum of squares (Welford 1962) of the probabilities, the mean of their
    entropies, votes, and volumes. A sample that equals those before it changes nothing, not even the last bit."""

    def __init__(self, classes: int, shape: Sequence[int]) -> None:
        """`classes` counts background; `shape` is that of the samples' grid."""
        self.count = 0
        self._mean = torch.zeros(classes, *shape)
        self._squares = torch.zeros(classes, *shape)
        self._entropy = torch.zeros(*shape)
        self._votes = torch.zeros(classes - 1, *shape, dtype=torch.int16)
        self._volumes = np.zeros(classes), np.zeros(classes)
        """Mean and sum of squares of the structures' volumes; at 0 of all of them together."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds, whatever the count."""
        return sum(t.nbytes for t in (self._mean, self._squares, self._entropy, self._votes))

    @torch.inference_mode()
    def add(self, probabilities: Tensor) -> None:
        """Fold in one sample, (classes, *shape)."""
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
        off = volumes - mean
        mean += off / self.count
        squares += off * (volumes - mean)

    @property
    def mean(self) -> Tensor:
        """Mean probabilities, (classes, *shape)."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Of the probabilities over the samples, (classes, *shape)."""
        return self._squares / max(1, self.count)

    @property
    def entropy(self) -> Tensor:
        """Of the mean probabilities: the predictive entropy, in nats."""
        return entropy_of(self._mean)

    @property
    def mutual_information(self) -> Tensor:
        """Between a voxel's class and which sample it is, in nats: what is left of the entropy when each sample is sure
        of something else."""
        return (self.entropy - self._entropy).clamp_(min=0)

    def image(self) -> Measures:
        """Of all structures together."""
        return self._measures(1 - self._mean[0], self.variance.sum(dim=0), self._votes, 0)

    def structure(self, value: int) -> Measures:
        """Of one structure, by its value from 1."""
        return self._measures(self._mean[value], self.variance[value], self._votes[value - 1 : value], value)

    def _measures(self, probability: Tensor, variance: Tensor, votes: Tensor, volume: int) -> Measures:
        region = probability >= REGION
        fields = (self.entropy, self.mutual_information, variance)
        means = [float(field[region].double().mean()) if region.any() else None for field in fields]
        mean, squares = (float(moment[volume]) for moment in self._volumes)
        pairs = votes.double()
        size = (self.count - 1) * float(pairs.sum())
        overlap = float((pairs * (pairs - 1)).sum())
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


def augmented(task: Sampled, image: Tensor, views: Sequence[View], *, batch: int = 1) -> Iterator[Tensor]:
    """Probabilities (1 + L, *shape) of an image (C, *shape) as each view has it, on the image's own axes; `batch` of
    them are in the network at once."""
    for start in range(0, len(views), batch):
        some = views[start : start + batch]
        answers = task.probabilities(torch.stack([view.show(image) for view in some]))
        for view, answer in zip(some, answers, strict=True):
            yield view.undo(answer)


def dropped(
    task: Sampled, image: Tensor, count: int, *, probability: float, seed: int, batch: int = 1
) -> Iterator[Tensor]:
    """Probabilities (1 + L, *shape) of an image (C, *shape) by `count` networks that drop what chance says; the same
    for the same `seed`."""
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices), task.dropout(probability):
        torch.manual_seed(seed)
        for start in range(0, count, batch):
            some = min(batch, count - start)
            yield from task.probabilities(image[None].expand(some, *image.shape))


def measured(samples: Iterator[Tensor], image: NetworkInput) -> Moments:
    """The moments of samples of an image, within the image: padding is left out."""
    within = tuple(slice(n) for n in image.extent)
    moments: Moments | None = None
    for sample in samples:
        inside = sample[(slice(None), *within)]
        moments = moments or Moments(len(inside), inside.shape[1:])
        moments.add(inside)
    if moments is None:
        raise BadRequest("an uncertainty needs samples: at least one")
    return moments


def uncertain_levels(moments: Moments, image: NetworkInput) -> Labels:
    """The predictive entropy on the source image's grid, (I, J, K): 255 where all classes are as likely."""
    field: Floats = (moments.entropy / math.log(len(moments.mean))).numpy()
    return image.levels(field)


def slice_sums(levels: Labels) -> tuple[npt.NDArray[np.float32], ...]:
    """For the source's i, j and k each: the entropy in every slice across it, in voxels of the most there can be."""
    return tuple(
        (levels.sum(axis=others, dtype=np.uint64) / 255).astype(np.float32) for others in ((1, 2), (0, 2), (0, 1))
    )


def worst_slices(sums: npt.NDArray[np.floating], count: int) -> list[int]:
    """The slices most worth looking at, worst first, none beside another: a twentieth of the axis lies between."""
    left = np.array(sums, dtype=np.float64)
    apart = max(1, len(left) // 20)
    chosen: list[int] = []
    while len(chosen) < count and left.size and left.max() > 0:
        worst = int(left.argmax())
        chosen.append(worst)
        left[max(0, worst - apart) : worst + apart + 1] = 0
    return chosen


@torch.inference_mode()
def descriptor(image: Tensor) -> Floats:
    """What an image (C, *shape) looks like, coarsely: mean and deviation of its first channel in `POOLED` boxes along
    each axis. Needs no network, so that images stay comparable whichever version looked at them."""
    channel = image[:1].float()
    mean = torch.nn.functional.adaptive_avg_pool3d(channel, POOLED)
    square = torch.nn.functional.adaptive_avg_pool3d(channel.square(), POOLED)
    deviation = (square - mean.square()).clamp_(min=0).sqrt_()
    pooled: Floats = torch.cat([mean.flatten(), deviation.flatten()]).cpu().numpy()
    return pooled
