"""Length: the progress and the end of a run whose length is given in epochs, steps or minutes."""

from __future__ import annotations

import math

import torch

from rayapp.training.checkpoint import State
from rayapp.training.options import Options
from rayapp.training.train_task import Host

VALIDATIONS = 20
"""Approximate number of validations in a run whose length is given in steps or minutes."""
FIRST = 0.01
"""Progress at which such a run is validated first, as only then can it be told how long the run will take."""
FINAL = 2
"""Duration of the evaluation at the end of a run, of the result and of the version in production, in validations."""
TICKS = 10_000
"""Steps of the learning rate schedule if the length is given in minutes."""


class Length:
    """The length of one run.

    Args:
        options: `minutes` and `max_steps`, of which the first to be reached ends the run; without both, `max_epochs`.
        host: All workers agree on the time measured by rank 0.
    """

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._host = host

    @property
    def timed(self) -> bool:
        """True if the number of steps is not known in advance."""
        return self._options.minutes > 0

    @property
    def in_epochs(self) -> bool:
        """True if the run ends with an epoch."""
        return not (self._options.minutes or self._options.max_steps)

    def steps(self, steps_per_epoch: int) -> int:
        """Steps that the learning rate schedule spans."""
        return TICKS if self.timed else self._options.max_steps or self._options.max_epochs * steps_per_epoch

    def done(self, state: State) -> float:
        """Progress of the run, from 0 to 1. Every worker calls this at the same point."""
        shares = [0.0]
        if self.in_epochs:
            shares.append(state.epoch / self._options.max_epochs)
        if self._options.max_steps:
            shares.append(state.iteration / self._options.max_steps)
        if self._options.minutes:
            shares.append(self._agreed(state.seconds) / (60 * self._options.minutes))
        return min(1.0, max(shares))

    def epochs(self, state: State, done: float) -> int:
        """Estimated number of epochs of the whole run."""
        if self.in_epochs:
            return self._options.max_epochs
        return max(1, state.epoch, math.ceil(state.epoch / done) if done else 0)

    def validation_due(self, state: State, done: float) -> bool:
        """True if a validation is due after the epoch that has just ended."""
        if self.in_epochs:
            return done >= 1 or state.epoch % self._options.val_interval == 0
        return done >= 1 or done - state.validated >= (1 / VALIDATIONS if state.validated else FIRST)

    def seconds_left(self, state: State, done: float) -> float:
        """Estimated seconds until the run's result, evaluation included; 0 once the training has ended."""
        if done >= 1 or not done:
            return 0.0
        each = state.validating / max(1, state.validations)
        if self.timed and done <= state.seconds / (60 * self._options.minutes):
            training = 60 * self._options.minutes - state.seconds
        else:
            planned = self._options.max_epochs / self._options.val_interval if self.in_epochs else 1 + VALIDATIONS
            training = (state.seconds - state.validating) * (state.iterations / state.iteration - 1)
            training += each * max(0.0, planned - state.validations)
        return training + FINAL * each

    def _agreed(self, seconds: float) -> float:
        if self._host.world_size == 1:
            return seconds
        told = torch.tensor([seconds], dtype=torch.float64, device=self._host.device)
        torch.distributed.broadcast(told, 0)
        return float(told)
