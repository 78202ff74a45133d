"""Training of DeepEdit: one network for automatic segmentation and for corrections by clicks.

Diaz-Pinto et al., "DeepEdit: Deep editable learning for interactive segmentation of 3D medical images" (2022).

Half of the steps have no clicks. In the others a simulated annotator corrects the network's own prediction for up to
`rounds` rounds, by clicks into structures or background, and the network learns with all these clicks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.segmentation import PreparedImage, SegmentationTask
from rayapp.inference.prompts.parse import BACKGROUND
from rayapp.models.store import ModelVersion
from rayapp.training import click_simulation
from rayapp.training.cases import Case
from rayapp.training.clicks import ClickTrainTask, with_guidance_batch
from rayapp.training.feed import Batch
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Evaluation, Labels, Predict, evaluation_of


class DeepEditTrainTask(ClickTrainTask):
    """Trainer of DeepEdit; see `BasicTrainTask` for its arguments. `rayapp.inference.methods.deepedit` serves its
    models."""

    measurements = ("dice", "dice_after_clicks")
    whole_image = True

    def inputs(
        self,
        batch: Batch,
        predict: Predict,
        options: ClickOptions,
        rng: np.random.Generator,
        *,
        common: np.random.Generator,
    ) -> Tensor:
        """The images with guidance: without clicks, or with those of one to `rounds` rounds."""
        clicks = [self.no_clicks() for _ in batch.images]
        count = self.draw_rounds(options, common, least=1) if common.random() < 0.5 else 0
        self.simulate_rounds(batch, clicks, predict, options, rng, count=count)
        return with_guidance_batch(batch.images, clicks)

    def validate(self, case: Case, predict: Predict, options: ClickOptions) -> Iterator[Evaluation]:
        """Evaluate the network in training without clicks and after `val_clicks`."""
        image, truth = case.image.float(), case.labels.numpy()
        predictions = {
            name: self.predict_with_corrections(image, truth, self.no_clicks(), predict, count=count)
            for name, count in zip(self.measurements, (0, options.val_clicks), strict=True)
        }
        yield evaluation_of(image, case.labels, predictions, case.unsought)

    def serve(self, version: ModelVersion) -> SegmentationTask:
        """The DeepEdit task that serves a version."""
        return DeepEditTask.from_version(version)

    def predict(
        self, task: SegmentationTask, volume: Volume, truth: Labels, options: ClickOptions
    ) -> dict[str, Labels]:
        """The predicted label maps of an image, (I, J, K), without clicks and after `val_clicks`."""
        predictions = list(annotate(task, task.prepare(volume), truth, clicks=options.val_clicks))
        return dict(zip(self.measurements, (predictions[0], predictions[-1]), strict=True))


def annotate(task: SegmentationTask, prepared: PreparedImage, truth: Labels, *, clicks: int) -> Iterator[Labels]:
    """Correct a served task's predictions by simulated clicks, each into the middle of the largest error.

    Args:
        task: The inference task.
        prepared: The image, as `task.prepare` makes it.
        truth: The reference label map, (I, J, K).
        clicks: Number of clicks.

    Yields:
        The label map, (I, J, K), without clicks and after each click.
    """
    names = [BACKGROUND, *(name for name, value in task.info.labels.items() if value)]
    clicked: dict[str, list[Point]] = {}
    rng = np.random.default_rng(0)
    for _ in range(clicks + 1):
        predicted = task.predict(prepared, Prompts(clicks=clicked), {}).labels
        yield predicted
        for label, (i, j, k) in click_simulation.corrections(
            truth, predicted, len(names), count=1, rng=rng, min_depth=1.0
        ):
            clicked.setdefault(names[label], []).append((int(i), int(j), int(k)))
