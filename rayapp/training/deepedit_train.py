"""DeepEditTrainTask: one network that segments by itself and is corrected by clicks (Diaz-Pinto et al., 2022).

Half of the steps show no clicks. In the others a simulated annotator looks at the network's own prediction and clicks
into its largest errors, of any structure or none, up to `rounds` times, and the network learns with all these clicks.
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
from rayapp.training.clicks import ClickTrainTask, guided_batch
from rayapp.training.feed import Batch
from rayapp.training.options import ClickOptions
from rayapp.training.recipe import Answer, Labels, Predict, answer_of


class DeepEditTrainTask(ClickTrainTask):
    """Arguments as of `BasicTrainTask`; `rayapp.inference.methods.deepedit` serves what it makes."""

    measurements = ("dice", "dice_after_clicks")
    whole = True

    def inputs(self, batch: Batch, predict: Predict, options: ClickOptions, rng: np.random.Generator) -> Tensor:
        """The images and their guidance: none, or of the clicks of one to `rounds` rounds."""
        clicks = [self.no_clicks() for _ in batch.images]
        count = int(rng.integers(1, options.rounds + 1)) if rng.random() < 0.5 else 0
        self.rounds(batch, clicks, predict, options, rng, count=count)
        return guided_batch(batch.images, clicks)

    def validate(self, case: Case, predict: Predict, options: ClickOptions) -> Iterator[Answer]:
        """Without clicks, and after `val_clicks` of them."""
        image, truth = case.image.float(), case.labels.numpy()
        found = {
            name: self.corrected(image, truth, self.no_clicks(), predict, count=count)
            for name, count in zip(self.measurements, (0, options.val_clicks), strict=True)
        }
        yield answer_of(image, case.labels, found)

    def serve(self, version: ModelVersion) -> SegmentationTask:
        """As DeepEdit."""
        return DeepEditTask.from_version(version)

    def ask(self, task: SegmentationTask, volume: Volume, truth: Labels, options: ClickOptions) -> dict[str, Labels]:
        """Without clicks, and after `val_clicks` of them."""
        found = list(annotate(task, task.prepare(volume), truth, clicks=options.val_clicks))
        return dict(zip(self.measurements, (found[0], found[-1]), strict=True))


def annotate(task: SegmentationTask, prepared: PreparedImage, truth: Labels, *, clicks: int) -> Iterator[Labels]:
    """A served task's answers to an annotator who always clicks into the middle of the largest error: without a
    click, then after each of `clicks`, all on the source's grid."""
    names = [BACKGROUND, *(name for name, value in task.info.labels.items() if value)]
    made: dict[str, list[Point]] = {}
    rng = np.random.default_rng(0)
    for _ in range(clicks + 1):
        found = task.predict(prepared, Prompts(clicks=made), {}).labels
        yield found
        for label, (i, j, k) in click_simulation.corrections(truth, found, len(names), count=1, rng=rng, deep=1.0):
            made.setdefault(names[label], []).append((int(i), int(j), int(k)))
