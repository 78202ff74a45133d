"""BasicTrainTask: the base class for trainers of one's own."""

from __future__ import annotations

from rayapp.training.loop import Run
from rayapp.training.recipe import Opts, Recipe
from rayapp.training.train_task import Host, TrainerInfo, TrainRequest, TrainResult


class BasicTrainTask(Recipe[Opts]):
    """A `TrainTask` that executes its own recipe. See `Recipe` for its arguments; override any of its methods."""

    @property
    def info(self) -> TrainerInfo:
        """The trainer as `/info/` lists it."""
        return TrainerInfo(description=self.description, labels=self.labels, config=self.options.config())

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """See `TrainTask.train`."""
        return Run(self, request, host).train()
