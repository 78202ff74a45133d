"""ClickTrainTask: what tasks that learn from simulated clicks share.

Their networks see an image and one guidance channel for each structure and one for background, as
`rayapp.inference.prompts.guidance.GuidedImage` makes them for training and inference alike.
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
"""Positions by guidance channel: structures by value, then background."""
AT_ONCE = 4
"""Clicks of one round into one image, at most."""


class ClickTrainTask(BasicTrainTask[ClickOptions]):
    """Arguments as of `BasicTrainTask`."""

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
        """An empty list for each channel."""
        return [[] for _ in range(self.guidance_channels)]

    def rounds(
        self,
        batch: Batch,
        clicks: list[Clicks],
        predict: Predict,
        options: ClickOptions,
        rng: np.random.Generator,
        *,
        count: int,
    ) -> None:
        """Let the network answer and the annotator correct it, `count` times: each time up to `AT_ONCE` clicks into the
        largest errors of each image are added to `clicks`."""
        for _ in range(count):
            guesses = predict(guided_batch(batch.images, clicks)).argmax(1).to(torch.uint8).cpu().numpy()
            for mine, truth, guess in zip(clicks, batch.labels.numpy(), guesses, strict=True):
                add_corrections(
                    mine, truth, guess, count=int(rng.integers(1, AT_ONCE + 1)), noise=options.click_noise, rng=rng
                )

    def corrected(self, image: Tensor, truth: Labels, clicks: Clicks, predict: Predict, *, count: int) -> Labels:
        """What the network finds after `count` more clicks, each into what is then the largest error."""
        rng = np.random.default_rng(0)
        found = labels_of(predict(guided(image, clicks)[None]))
        for _ in range(count):
            add_corrections(clicks, truth, found, count=1, noise=0.0, rng=rng)
            found = labels_of(predict(guided(image, clicks)[None]))
        return found


def guided(image: Tensor, clicks: Clicks) -> Tensor:
    """What the network is shown of one image, (C, X, Y, Z) or (C, X, Y), and the clicks on it."""
    flat = image.ndim == 3
    whole = (image[..., None] if flat else image).numpy()
    shown = torch.from_numpy(guidance.GuidedImage(whole, len(clicks)).show(clicks))
    return shown[..., 0] if flat else shown


def guided_batch(images: Tensor, clicks: Sequence[Clicks]) -> Tensor:
    """The same of several."""
    return torch.stack([guided(image, mine) for image, mine in zip(images, clicks, strict=True)])


def add_corrections(
    clicks: Clicks, truth: Labels, guess: Labels, *, count: int, noise: float, rng: np.random.Generator
) -> None:
    """Add a click into each of the `count` largest errors."""
    truth, guess = np.atleast_3d(truth), np.atleast_3d(guess)
    for label, position in click_simulation.corrections(truth, guess, len(clicks), count=count, rng=rng, noise=noise):
        clicks[(label - 1) % len(clicks)].append(position)
