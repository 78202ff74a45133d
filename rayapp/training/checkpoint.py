"""Checkpoint: the complete state of a run, from which it resumes as if it had never stopped.

A checkpoint is a folder with `tensors.pt` (network, optimiser, scheduler and the best weights so far; loaded with
`weights_only`, which runs no code) and `state.json`, which is written last. No random generator's state is saved, since
all randomness depends on the seed and the step (see `feed` and `learner`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rayapp.errors import Unreadable

STATE, TENSORS = "state.json", "tensors.pt"


@dataclass(kw_only=True)
class State:
    """The progress of a run. Mutable; changed by `loop.Run` alone.

    Attributes:
        epoch: Number of completed epochs.
        consumed: Visits to cases that all workers together have made in the next epoch.
        iteration: Number of completed steps of the optimiser.
        iterations: Number of steps of the whole run, as estimated when it was last started.
        best: The best validation metric; None before the first validation.
        best_epoch: The epoch of the best validation metric.
        validations_since: Validations since the best one.
        validated: Progress of the run at the last validation, from 0 to 1.
        seconds: Seconds of training, validations included, over all starts of the run.
        validating: Seconds of all validations.
        validations: Number of validations.
        started: When the run first started, in seconds since the epoch.
        kept: The iteration of the last checkpoint.
        resumed: Number of times that the run resumed from a checkpoint.
        rows: The metrics of validated epochs, as `rayapp.training.run_report` shows them.
        design: The run's `Design`, as part of a card.
        left_out: By the image's name, the reason why it is excluded from the training.
    """

    epoch: int = 0
    consumed: int = 0
    iteration: int = 0
    iterations: int = 0
    best: float | None = None
    best_epoch: int = 0
    validations_since: int = 0
    validated: float = 0.0
    seconds: float = 0.0
    validating: float = 0.0
    validations: int = 0
    started: float = field(default_factory=time.time)
    kept: int = 0
    resumed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    design: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def trained(self, start: str | None) -> dict[str, Any]:
        """The training's record for a version's card.

        Args:
            start: The version it was fine-tuned from; None for random initial weights.
        """
        return {
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "iterations": self.iteration,
            "seconds": round(self.seconds),
            "resumed": self.resumed,
            "from": start,
        }


def save(folder: Path, state: State, tensors: Mapping[str, Any]) -> None:
    """Write a checkpoint to `folder`, in place of whatever is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.save(dict(tensors), folder / TENSORS)
    (folder / STATE).write_text(json.dumps(dataclasses.asdict(state)))


def load(folder: Path) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint.

    Returns:
        The run's progress, and the tensors on the CPU.

    Raises:
        Unreadable: If the checkpoint is incomplete or damaged.
    """
    try:
        state = State(**json.loads((folder / STATE).read_text()))
        tensors = torch.load(folder / TENSORS, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise Unreadable(
            f"the run's checkpoint is incomplete or damaged ({type(error).__name__}): start the training again"
        ) from error
    return state, dict(tensors)
