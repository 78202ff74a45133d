"""BasicTrainTask: what app developers extend to train a model their way."""

from __future__ import annotations

from rayapp.training.loop import Run
from rayapp.training.recipe import Opts, Recipe
from rayapp.training.train_task import Host, TrainerInfo, TrainRequest, TrainResult


class BasicTrainTask(Recipe[Opts]):
    """A `TrainTask` that trains by its own recipe; see `Recipe` for its arguments and for what may be overridden."""

    @property
    def info(self) -> TrainerInfo:
        """The trainer as `/info/` lists it."""
        return TrainerInfo(description=self.description, labels=self.labels, config=self.options.config())

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """See `TrainTask`."""
        return Run(self, request, host).go()
