"""Training of DeepGrow: segmentation of any single structure from clicks inside and outside it.

Sakinis et al., "Interactive segmentation of medical images through fully convolutional neural networks" (2019).

Each structure of a label map is the foreground in turn, whatever its value. The network's input is the image with
foreground and background clicks, its output two channels of logits. Every training step has clicks: one deep inside the
structure and, for up to `rounds` rounds, corrections of the network's own prediction.

    deepgrow_3d   images (C, X, Y, Z) resampled whole into the ROI, as for DeepEdit
    deepgrow_2d   slices (C, X, Y) as `rayapp.inference.network.slices` makes them, with intensities normalised over the
                  whole stack

The network's channels are the image's C, foreground guidance and background guidance, in this order; for slices the
guidance is drawn as in a volume of one slice. The card's labels are `{"foreground": 1}`.
`rayapp.inference.methods.deepgrow` serves these models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayapp.imaging.unseen import UNSEEN
from rayapp.inference.network import slices
from rayapp.inference.network.network import Network
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts.parse import FOREGROUND
from rayapp.models.store import ModelVersion
from rayapp.training import click_simulation
from rayapp.training.augmentation import augmentation
from rayapp.training.cases import Case, case_of, name_of, read_pair
from rayapp.training.clicks import Clicks, ClickTrainTask, with_guidance_batch
from rayapp.training.design import Design
from rayapp.training.feed import Batch
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Evaluation, Labels, Predict, evaluation_of, example
from rayapp.training.train_task import Pair
from rayapp.training.window import Example


class DeepGrowTrainTask(ClickTrainTask):
    """Trainer of DeepGrow 3D; see `BasicTrainTask` for its arguments."""

    measurements = ("dice_after_one_click", "dice_after_clicks")
    whole_image = True

    def __init__(self, *, description: str, options: ClickOptions, conf: Mapping[str, Any] | None = None) -> None:
        super().__init__(labels={FOREGROUND: 1}, description=description, options=options, conf=conf)

    def check(self, pair: Pair) -> None:
        """Read a pair's files, with the label file's own values. Raises BadRequest if they cannot be trained with."""
        read_pair(pair, None)

    def read(self, pair: Pair, design: Design) -> Case:
        """Read a pair onto the network's grid, with the label file's own values.

        Raises:
            BadRequest: If its files cannot be trained with.
        """
        volume, labels, _ = read_pair(pair, None)
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
        """A function from a case to training examples with one structure each, augmented."""
        window = self.window(design, turned=options.augment)
        augment = [augmentation((), dimensions=self.dimensions)] if options.augment else []

        def make(case: Case, rng: np.random.Generator) -> list[Example]:
            return [example(*window.cut(*one, rng), augment, rng) for one in self.sample_structures(case, rng)]

        return make

    def sample_structures(self, case: Case, rng: np.random.Generator) -> Iterator[Example]:
        """The image with one of its structures as foreground, all structures with equal probability."""
        values = structures(case.labels)
        if values:
            yield case.image, foreground(case.labels, values[int(rng.integers(len(values)))])
        else:
            yield case.image, case.labels

    def inputs(
        self,
        batch: Batch,
        predict: Predict,
        options: ClickOptions,
        rng: np.random.Generator,
        *,
        common: np.random.Generator,
    ) -> Tensor:
        """The images with guidance of a first click, and of up to `rounds` rounds of corrective clicks."""
        clicks = [self.first_click(truth, rng, noise=options.click_noise) for truth in batch.labels.numpy()]
        count = self.draw_rounds(options, common, least=0)
        self.simulate_rounds(batch, clicks, predict, options, rng, count=count)
        return with_guidance_batch(batch.images, clicks)

    def first_click(self, truth: Labels, rng: np.random.Generator, *, noise: float) -> Clicks:
        """A click deep inside the structure, if there is one."""
        clicks, truth = self.no_clicks(), np.atleast_3d(truth)
        part = click_simulation.largest_component(truth, 1)
        if part is not None:
            clicks[0].append(click_simulation.clamped(part.click(rng, noise=noise), truth.shape))
        return clicks

    def validate(self, case: Case, predict: Predict, options: ClickOptions) -> Iterator[Evaluation]:
        """Evaluate the network in training on each structure, after the first click and after `val_clicks`."""
        for image, labels in self.each_structure(case):
            truth, predictions = labels.numpy(), {}
            for name, more in zip(self.measurements, (0, options.val_clicks - 1), strict=True):
                clicks = self.first_click(truth, np.random.default_rng(0), noise=0)
                predictions[name] = self.predict_with_corrections(image, truth, clicks, predict, count=more)
            yield evaluation_of(image, labels, predictions)

    def each_structure(self, case: Case) -> Iterator[Example]:
        """The image with each of its structures as foreground in turn."""
        for value in structures(case.labels):
            yield case.image.float(), foreground(case.labels, value)

    def evaluate(self, version: ModelVersion, pairs: Sequence[Pair], options: ClickOptions) -> Iterator[Evaluation]:
        """Evaluate a version's network on its own grid.

        Raises:
            ModelBroken: If the version cannot be loaded.
            BadRequest: If a pair cannot be read.
        """
        design = Design.of(version.card, guidance=self.guidance_channels)
        channels = (design.channels + self.guidance_channels, 2)
        network = Network(name=version.name, config=design.network, weights=version.weights, channels=channels)
        for pair in pairs:
            for number, evaluation in enumerate(self.validate(self.read(pair, design), network, options), 1):
                yield replace(evaluation, name=f"{name_of(pair)}, structure {number}")


class DeepGrow2dTrainTask(DeepGrowTrainTask):
    """Trainer of DeepGrow 2D, which segments slices in the plane of their acquisition."""

    dimensions = 2
    examples_per_case = 4

    def read(self, pair: Pair, design: Design) -> Case:
        """Read a pair as a stack of slices: image (C, K, X, Y), labels (K, X, Y).

        Raises:
            BadRequest: If its files cannot be trained with.
        """
        volume, labels, _ = read_pair(pair, None)
        affine = volume.affine
        grid = slices.slice_grid(
            volume.shape, affine, spacing_mm=design.spacing, limit=design.roi_size, divisor=design.divisor
        )
        image = self.normalised(volume, pair, design, lambda channel: slices.stack(grid, affine, channel))
        return case_of(image, slices.label_stack(grid, affine, labels))

    def sample_structures(self, case: Case, rng: np.random.Generator) -> Iterator[Example]:
        """Random slices that contain a structure, each with one of its structures as foreground."""
        marked = (case.labels > 0) & (case.labels != UNSEEN)
        labelled = np.flatnonzero(marked.flatten(1).any(1).numpy())
        count = self.examples_per_case
        for k in rng.choice(labelled, count) if len(labelled) else [0] * count:
            yield from super().sample_structures(Case(image=case.image[:, int(k)], labels=case.labels[int(k)]), rng)

    def each_structure(self, case: Case) -> Iterator[Example]:
        """Each structure as foreground, on the slice that contains most of its voxels."""
        for value in structures(case.labels):
            k = int((case.labels == value).flatten(1).sum(1, dtype=torch.int64).argmax())
            yield case.image[:, k].float(), foreground(case.labels[k], value)


def structures(labels: Tensor) -> list[int]:
    """The values of a label map, except background and `UNSEEN`."""
    return [int(value) for value in np.unique(labels.numpy()) if value not in (0, UNSEEN)]


def foreground(labels: Tensor, value: int) -> Tensor:
    """A label map with 1 where `labels` has a value, `UNSEEN` where nobody looked, and else 0."""
    return torch.where(labels == UNSEEN, labels, (labels == value).to(torch.uint8))
