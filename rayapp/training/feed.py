"""Feed: the batches of an epoch, prepared ahead of the network in a thread of their own.

A batch depends only on the seed, the epoch and the cases' positions within the epoch, so that a run resumed from a
checkpoint sees the batches it would have seen, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from rayapp.inference.network.normalisation import PADDING
from rayapp.training.cases import Case, Cases
from rayapp.training.window import Example

Indices = npt.NDArray[np.int64]
AHEAD = 2
"""Batches prepared in advance."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch on the CPU.

    Attributes:
        images: (N, C, …), float32.
        labels: (N, …), uint8; `UNSEEN` where nobody looked.
        unsought: For each image, values of the structures that were not looked for.
    """

    images: Tensor
    labels: Tensor
    unsought: Sequence[tuple[int, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The batches of one worker.

    Attributes:
        cases: All training cases.
        examples: Makes the training examples of a case, with the random generator it is given; runs in the feed's
            thread.
        batch_size: Cases per batch.
        seed: Seed of order and examples.
        rank: The worker's rank.
        world_size: Number of workers.
        visits: Visits to each case in an epoch. They are made in so many batches in a row, for which a case is read
            once.
    """

    cases: Cases
    examples: Callable[[Case, np.random.Generator], Sequence[Example]]
    batch_size: int
    seed: int
    rank: int
    world_size: int
    visits: int = 1

    def __len__(self) -> int:
        """Number of visits in an epoch, by all workers together."""
        return self.visits * len(self.cases)

    def batches(self, consumed: int = 0) -> int:
        """Number of batches left in an epoch of which all workers together have made `consumed` visits."""
        return -(-(len(self) - consumed) // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, *, consumed: int = 0) -> Iterator[Batch]:
        """This worker's batches of an epoch. All workers get the same number; cases repeat, as other examples, if
        they do not divide evenly.

        Args:
            epoch: Number of the epoch, from 0.
            consumed: Visits of the epoch that all workers together have made already.

        Raises:
            BadRequest: For a case that cannot be read.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.cases))
        count, per_step = self.batches(consumed), self.batch_size * self.world_size
        positions = np.arange(consumed, consumed + count * per_step)
        own = positions.reshape(count, self.world_size, self.batch_size)[:, self.rank]
        # A second team of OpenMP threads would make those of the network wait between its operations.
        alone = partial(torch.set_num_threads, 1)
        with ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=alone) as reader:
            pending = [reader.submit(self._batch, epoch, order, batch) for batch in own[:AHEAD]]
            try:
                for step in range(count):
                    batch = pending.pop(0).result()
                    if step + AHEAD < count:
                        pending.append(reader.submit(self._batch, epoch, order, own[step + AHEAD]))
                    yield batch
            finally:
                reader.shutdown(cancel_futures=True)

    def _batch(self, epoch: int, order: Indices, positions: Indices) -> Batch:
        examples: list[Example] = []
        unsought: list[tuple[int, ...]] = []
        step = self.batch_size * self.world_size
        for position in positions:
            rng = np.random.default_rng((self.seed, epoch, int(position)))
            place = position // (step * self.visits) * step + position % step
            case = self.cases[int(order[place % len(order)])]
            made = self.examples(case, rng)
            examples += made
            unsought += [case.unsought] * len(made)
        return batch_of(examples, unsought)


def batch_of(examples: Sequence[Example], unsought: Sequence[tuple[int, ...]] = ()) -> Batch:
    """Stack examples to a batch, each padded at the end of every axis to the largest example's size.

    Args:
        examples: Images and labels.
        unsought: See `Batch`.
    """
    largest = np.max([labels.shape for _, labels in examples], axis=0)
    images, maps = [], []
    for image, labels in examples:
        widths = [int(n) for missing in reversed(largest - labels.shape) for n in (0, missing)]
        images.append(pad(image, widths, value=PADDING))
        maps.append(pad(labels, widths))
    return Batch(images=torch.stack(images), labels=torch.stack(maps), unsought=unsought)
