"""Feed: one epoch's batches, made one ahead of the network in a thread of its own.

What a batch holds follows from the seed, the epoch and the case's place in it alone, so that a run that goes on from a
checkpoint sees what it would have seen, in whatever number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from rayapp.inference.network.normalisation import PADDING
from rayapp.training.cases import Case, Cases

Example = tuple[Tensor, Tensor]
"""An image, (C, …) float32, and its labels, (…) uint8."""
Indices = npt.NDArray[np.int64]
AHEAD = 2
"""Batches made before they are asked for."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images (N, C, …), float32, and labels (N, …), uint8, on the CPU."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches of one worker's share of the cases.

    `examples` makes what is learnt from a case, with the generator it is given; it runs in the feed's thread.
    """

    cases: Cases
    examples: Callable[[Case, np.random.Generator], Sequence[Example]]
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def batches(self, consumed: int = 0) -> int:
        """Batches that are left of an epoch when `consumed` of its cases were trained with, by all workers."""
        return -(-(len(self.cases) - consumed) // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, *, consumed: int = 0) -> Iterator[Batch]:
        """This worker's batches. Every worker gets as many: some cases come twice where they cannot be shared out.

        Raises BadRequest for a case that cannot be read.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.cases))
        count, per_step = self.batches(consumed), self.batch_size * self.world_size
        places = np.resize(np.arange(consumed, len(order)), count * per_step)
        mine = places.reshape(count, self.world_size, self.batch_size)[:, self.rank]
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
            waiting = [reader.submit(self._batch, epoch, order, places) for places in mine[:AHEAD]]
            try:
                for step in range(count):
                    batch = waiting.pop(0).result()
                    if step + AHEAD < count:
                        waiting.append(reader.submit(self._batch, epoch, order, mine[step + AHEAD]))
                    yield batch
            finally:
                reader.shutdown(cancel_futures=True)

    def _batch(self, epoch: int, order: Indices, places: Indices) -> Batch:
        made: list[Example] = []
        for place in places:
            rng = np.random.default_rng((self.seed, epoch, int(place)))
            made += self.examples(self.cases[int(order[place])], rng)
        return batch_of(made)


def batch_of(examples: Sequence[Example]) -> Batch:
    """Examples as one batch, padded at the ends to as many voxels along each axis as the largest has."""
    largest = np.max([labels.shape for _, labels in examples], axis=0)
    images, maps = [], []
    for image, labels in examples:
        ends = [int(n) for more in reversed(largest - labels.shape) for n in (0, more)]
        images.append(pad(image, ends, value=PADDING))
        maps.append(pad(labels, ends))
    return Batch(images=torch.stack(images), labels=torch.stack(maps))
