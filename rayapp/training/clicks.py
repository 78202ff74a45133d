"""ClickTrainTask: the base class of trainers that learn from simulated clicks.

Their networks take an image, one guidance channel for each structure, and one for background, as
`rayapp.inference.prompts.guidance.GuidedImage` draws them for training and inference alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayapp.inference.prompts import guidance
from rayapp.inference.prompts.guidance import Position
from rayapp.training import click_simulation
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.feed import Batch
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Labels, Predict, labels_of

Clicks = list[list[Position]]
"""Positions of clicks for each guidance channel: structures by value, then background."""
MAX_CLICKS_PER_ROUND = 4
"""Largest number of clicks into one image in one round, from the third round on. Before, clicks come one by one, as an
annotator's first ones do."""


class ClickTrainTask(BasicTrainTask[ClickOptions]):
    """A trainer with guidance channels; see `BasicTrainTask` for its arguments."""

    def __init__(
        self,
        *,
        labels: Mapping[str, int],
        description: str,
        options: ClickOptions,
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(labels=labels, description=description, options=options, conf=conf)
        self.guidance_channels = len(self.labels) + 1

    def no_clicks(self) -> Clicks:
        """An empty list for each guidance channel."""
        return [[] for _ in range(self.guidance_channels)]

    def draw_rounds(self, options: ClickOptions, rng: np.random.Generator, *, least: int) -> int:
        """A random number of rounds from `least` to the option `rounds`; few are likelier than many."""
        numbers = np.arange(least, options.rounds + 1)
        weights = 1 / (1 + numbers - least)
        return int(rng.choice(numbers, p=weights / weights.sum()))

    def simulate_rounds(
        self,
        batch: Batch,
        clicks: list[Clicks],
        predict: Predict,
        options: ClickOptions,
        rng: np.random.Generator,
        *,
        count: int,
    ) -> None:
        """Simulate rounds of prediction and correction.

        Each round the network predicts every image, and clicks into its errors are added to `clicks`: one, and up to
        `MAX_CLICKS_PER_ROUND` from the third round on.

        Args:
            batch: Images and reference labels.
            clicks: The clicks on each image; extended in place.
            predict: The network as it is now.
            options: The run's options.
            rng: Source of randomness.
            count: Number of rounds.
        """
        for round_ in range(count):
            most = 1 if round_ < 2 else MAX_CLICKS_PER_ROUND
            predictions = predict(with_guidance_batch(batch.images, clicks)).argmax(1).to(torch.uint8).cpu().numpy()
            unsought = batch.unsought or [()] * len(clicks)
            for own, truth, predicted, open_ in zip(clicks, batch.labels.numpy(), predictions, unsought, strict=True):
                predicted[np.isin(predicted, open_)] = 0
                truth, predicted = np.atleast_3d(truth), np.atleast_3d(predicted)
                number = int(rng.integers(1, most + 1))
                for region in click_simulation.drawn_regions(truth, predicted, len(own), count=number, rng=rng):
                    voxel = region.click(rng, noise=options.click_noise)
                    add_click(own, region.label, click_simulation.clamped(voxel, truth.shape))

    def predict_with_corrections(
        self, image: Tensor, truth: Labels, clicks: Clicks, predict: Predict, *, count: int
    ) -> Labels:
        """The prediction after corrective clicks, each into the largest error at that time.

        Args:
            image: The image, (C, …).
            truth: The reference label map, (…).
            clicks: The clicks so far; extended in place.
            predict: The network as it is now.
            count: Number of corrective clicks.

        Returns:
            The label map, (…).
        """
        rng = np.random.default_rng(0)
        predicted = labels_of(predict(with_guidance(image, clicks)[None]))
        for _ in range(count):
            wrong = np.atleast_3d(truth), np.atleast_3d(predicted)
            for label, position in click_simulation.corrections(*wrong, len(clicks), count=1, rng=rng):
                add_click(clicks, label, position)
            predicted = labels_of(predict(with_guidance(image, clicks)[None]))
        return predicted


def with_guidance(image: Tensor, clicks: Clicks) -> Tensor:
    """The network's input for an image, (C, X, Y, Z) or (C, X, Y), and clicks: its channels, then the guidance."""
    flat = image.ndim == 3
    volume = (image[..., None] if flat else image).numpy()
    channels = torch.from_numpy(guidance.GuidedImage(volume, len(clicks)).show(clicks))
    return channels[..., 0] if flat else channels


def with_guidance_batch(images: Tensor, clicks: Sequence[Clicks]) -> Tensor:
    """The network's input for images (N, C, …) and the clicks on each."""
    return torch.stack([with_guidance(image, own) for image, own in zip(images, clicks, strict=True)])


def add_click(clicks: Clicks, label: int, position: Position) -> None:
    """Add a click of a label, 0 for background, to `clicks`, in place."""
    clicks[(label - 1) % len(clicks)].append(position)
