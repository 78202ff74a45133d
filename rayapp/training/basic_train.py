"""BasicTrainTask: the base class for trainers of one's own."""

from __future__ import annotations

from rayapp.training.loop import Run
from rayapp.training.recipe import Opts, Recipe
from rayapp.training.train_task import Host, TrainerInfo, TrainRequest, TrainResult


class BasicTrainTask(Recipe[Opts]):
    """A trainer that executes its own recipe. Override any method of `Recipe` to train differently.

    Args:
        labels: Value by structure name, contiguous from 1.
        description: One line for people, about the trainer and its models.
        options: Default options, which a request may override.
        conf: The app's overrides of the planner, see `rayapp.planner.overrides`: `spacing`, `roi_size`, `network`,
            `overlap`, `precision`. A request may set the same and takes precedence.
    """

    @property
    def info(self) -> TrainerInfo:
        """The trainer as `/info/` lists it."""
        return TrainerInfo(description=self.description, labels=self.labels, config=self.options.config())

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """See `TrainTask.train`."""
        return Run(self, request, host).train()
