"""Validation of a network in training: on whole images, or on windows of images that are much larger than these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayapp.training.cases import Case, Cases
from rayapp.training.design import Design
from rayapp.training.learner import Learner
from rayapp.training.metrics import Metrics, Tally
from rayapp.training.options import Options
from rayapp.training.recipe import Recipe
from rayapp.training.train_task import Host

WINDOWS = 8
"""Windows of an image that stand for it. The result of a run is evaluated on whole images."""


class Validator:
    """The validation images of one worker, the same voxels of them each time."""

    def __init__(
        self, task: Recipe[Any], design: Design, options: Options, host: Host, *, cases: Cases, count: int
    ) -> None:
        """A validation; nothing is read yet.

        Args:
            task: The recipe.
            design: The network and its grid.
            options: The run's options.
            host: The worker's environment.
            cases: The worker's own share of the images.
            count: Number of images of all workers together.
        """
        self._task, self._options, self._host = task, options, host
        self._design, self._cases, self._count = design, cases, count
        self._window = task.window(design, turned=False)
        self._windows: dict[int, list[Case]] = {}

    def metrics(self, learner: Learner[Any]) -> Metrics | None:
        """The metrics of the network as it is now, over the images of all workers; None when stopped."""
        infer = self._task.inferer(self._design)

        def predict(images: torch.Tensor) -> torch.Tensor:
            return infer(images, learner.predict)

        tally = Tally(self._task.measurements, tuple(self._task.labels))
        for step in range(-(-self._count // self._host.world_size)):
            if self._host.stopped():
                return None
            for case in self._parts(step) if step < len(self._cases) else ():
                tally.merge(self._task.tally(self._task.validate(case, predict, self._options)))
        if self._host.world_size > 1:
            tally.all_reduce(self._host.device)
        return tally.means()

    def _parts(self, index: int) -> Sequence[Case]:
        """An image, or windows of it, which are kept."""
        if index in self._windows:
            return self._windows[index]
        case = self._cases[index]
        if self._task.whole_image or case.labels.numel() <= WINDOWS * np.prod(self._design.roi_size):
            return [case]
        rng = np.random.default_rng((self._options.seed, index, self._host.rank))
        parts = [self._window.cut(case.image, case.labels, rng, places=case.places) for _ in range(WINDOWS)]
        self._windows[index] = [
            Case(image=image.half().clone(), labels=labels.clone(), unsought=case.unsought) for image, labels in parts
        ]
        return self._windows[index]
