"""One training run as the training actor hands it to its workers, and the files through which they meet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.actor import ActorHandle

from rayapp.config import Settings
from rayapp.training.train_task import TrainRequest

STOP = ".stop"
"""A file in the run's folder that asks the workers to stop; they look for it before each iteration."""
LOCK = ".lock"
"""A file in the run's folder that rank 0 locks while it lives, so that two lives of a run never overlap."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a worker needs to know; picklable: plain values and an actor's handle."""

    job_id: str
    settings: Settings
    request: TrainRequest
    checkpoints: Path
    jobs: ActorHandle
