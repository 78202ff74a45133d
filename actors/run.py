"""A training run as the training actor passes it to its workers, and the files by which they coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.actor import ActorHandle

from rayapp.config import Settings
from rayapp.training.train_task import TrainRequest

STOP = ".stop"
"""File in the run's folder that asks the workers to stop; they check for it before each iteration."""
LOCK = ".lock"
"""File in the run's folder that rank 0 locks while it runs, so that two attempts of a run never overlap."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a worker needs: plain values and an actor's handle, so that it can be pickled."""

    job_id: str
    settings: Settings
    request: TrainRequest
    checkpoints: Path
    jobs: ActorHandle
