"""DeepGrow: one structure, any structure, outlined by clicks in and around it (Sakinis et al., 2019).

Whatever a label map's value, each of its structures in turn is "the" structure; the network sees the image, the clicks
in it (foreground) and those beside it (background), and answers background and foreground, two channels of logits.
Training always shows clicks: one deep inside the structure and, up to `rounds` times, corrections of the network's own
prediction.

    deepgrow_3d   image (C, X, Y, Z) scaled whole into the ROI, as DeepEdit's
    deepgrow_2d   slices (C, X, Y) as `rayapp.inference.network.slices` makes them, intensities normalised over the
                  whole stack

The network's channels are the image's C, foreground guidance, background guidance, in this order; for slices guidance
is drawn as in a volume of one slice. The card's labels are `{"foreground": 1}`.
`rayapp.inference.methods.deepgrow` serves what is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayapp.inference.network import slices
from rayapp.inference.network.network import Network
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.parse import FOREGROUND
from rayapp.models.store import ModelVersion
from rayapp.training import click_simulation
from rayapp.training.augmentation import augmentation
from rayapp.training.cases import Case, case_of, read_pair
from rayapp.training.clicks import Clicks, ClickTrainTask, guided_batch
from rayapp.training.design import Design
from rayapp.training.feed import Batch, Example
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Answer, Labels, Predict, answer_of, example
from rayapp.training.train_task import Pair


class DeepGrowTrainTask(ClickTrainTask):
    """DeepGrow 3D; arguments as of `BasicTrainTask`."""

    measurements = ("dice_after_one_click", "dice_after_clicks")
    whole = True

    def __init__(self, *, description: str, options: ClickOptions, conf: Mapping[str, Any] | None = None) -> None:
        super().__init__(labels={FOREGROUND: 1}, description=description, options=options, conf=conf)

    def read(self, pair: Pair, design: Design) -> Case:
        """A pair on the network's grid, with the label file's own values. Raises BadRequest."""
        volume, labels = read_pair(pair, None)
        grid = NetworkGrid.fit(
            volume.shape,
            volume.affine,
            spacing_mm=design.spacing,
            limit=design.roi_size,
            divisor=design.divisor,
        )
        return case_of(self.normalised(volume, pair, design, grid.from_source), grid.labels_from_source(labels))

    def examples(
        self, design: Design, options: ClickOptions
    ) -> Callable[[Case, np.random.Generator], Sequence[Example]]:
        """One of a case's structures (of each of some slices), augmented."""
        change = [augmentation((), dimensions=self.dimensions, spacing=design.spacing)] if options.augment else []

        def make(case: Case, rng: np.random.Generator) -> list[Example]:
            return [example(image, truth, change, rng) for image, truth in self.chosen(case, rng)]

        return make

    def chosen(self, case: Case, rng: np.random.Generator) -> Iterator[Example]:
        """The image with one of its structures, drawn evenly, as 1."""
        values = structures(case.labels)
        if values:
            yield case.image, (case.labels == values[int(rng.integers(len(values)))]).to(torch.uint8)
        else:
            yield case.image, case.labels

    def inputs(self, batch: Batch, predict: Predict, options: ClickOptions, rng: np.random.Generator) -> Tensor:
        """The images and the guidance of a first click and of up to `rounds` rounds of corrections."""
        clicks = [self.first(truth, rng, noise=options.click_noise) for truth in batch.labels.numpy()]
        self.rounds(batch, clicks, predict, options, rng, count=int(rng.integers(0, options.rounds + 1)))
        return guided_batch(batch.images, clicks)

    def first(self, truth: Labels, rng: np.random.Generator, *, noise: float) -> Clicks:
        """A click deep inside the structure, if there is one."""
        clicks, truth = self.no_clicks(), np.atleast_3d(truth)
        part = click_simulation.structure(truth, 1)
        if part is not None:
            clicks[0].append(click_simulation.placed_on(part.click(rng, noise=noise), truth.shape))
        return clicks

    def validate(self, case: Case, predict: Predict, options: ClickOptions) -> Iterator[Answer]:
        """Each structure, after its first click and after `val_clicks`."""
        for image, labels in self.each(case):
            truth, found = labels.numpy(), {}
            for name, more in zip(self.measurements, (0, options.val_clicks - 1), strict=True):
                clicks = self.first(truth, np.random.default_rng(0), noise=0)
                found[name] = self.corrected(image, truth, clicks, predict, count=more)
            yield answer_of(image, labels, found)

    def each(self, case: Case) -> Iterator[Example]:
        """The image with each of its structures as 1."""
        for value in structures(case.labels):
            yield case.image.float(), (case.labels == value).to(torch.uint8)

    def answers(self, version: ModelVersion, pairs: Sequence[Pair], options: ClickOptions) -> Iterator[Answer]:
        """What a version's network answers, on its own grid. Raises ModelBroken, BadRequest."""
        design = Design.of(version.card, guidance=self.guidance_channels)
        channels = (design.channels + self.guidance_channels, 2)
        network = Network(name=version.name, config=design.network, weights=version.weights, channels=channels)
        for pair in pairs:
            yield from self.validate(self.read(pair, design), network, options)


class DeepGrow2dTrainTask(DeepGrowTrainTask):
    """DeepGrow 2D, of slices as they were acquired."""

    dimensions = 2
    at_a_visit = 4

    def read(self, pair: Pair, design: Design) -> Case:
        """A pair as a stack: image (C, K, X, Y), labels (K, X, Y). Raises BadRequest."""
        volume, labels = read_pair(pair, None)
        affine = volume.affine
        grid = slices.slice_grid(
            volume.shape, affine, spacing_mm=design.spacing, limit=design.roi_size, divisor=design.divisor
        )
        image = self.normalised(volume, pair, design, lambda channel: slices.stack(grid, affine, channel))
        return case_of(image, slices.label_stack(grid, affine, labels))

    def chosen(self, case: Case, rng: np.random.Generator) -> Iterator[Example]:
        """Some slices that show a structure, each with one of its own as 1."""
        shown = np.flatnonzero(case.labels.flatten(1).any(1).numpy())
        for k in rng.choice(shown, self.at_a_visit) if len(shown) else [0] * self.at_a_visit:
            yield from super().chosen(Case(image=case.image[:, int(k)], labels=case.labels[int(k)]), rng)

    def each(self, case: Case) -> Iterator[Example]:
        """Each structure, on the slice that shows most of it."""
        for value in structures(case.labels):
            mask = (case.labels == value).to(torch.uint8)
            k = int(mask.flatten(1).sum(1, dtype=torch.int64).argmax())
            yield case.image[:, k].float(), mask[k]


def structures(labels: Tensor) -> list[int]:
    """The values of a label map, without background."""
    return [int(value) for value in np.unique(labels.numpy()) if value]
