"""Job: one piece of background work as it is recorded, and as clients read it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

DETAILS = 20
"""Lines of `details` that are kept."""


class Kind(StrEnum):
    """What runs in the background; within a kind one job at a time, in the order they came."""

    TRAIN = "train"
    SCORING = "scoring"
    BATCH = "batch_infer"

    @property
    def shown(self) -> str:
        """As MONAI Label's texts write it."""
        return self.value.capitalize()

    @property
    def words(self) -> str:
        """In our own texts."""
        return {Kind.TRAIN: "training", Kind.SCORING: "scoring", Kind.BATCH: "batch inference"}[self]


class State(StrEnum):
    """Where a job stands; the last three are ends."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    ERROR = "ERROR"
    STOPPED = "STOPPED"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is. Epochs and iterations count from 1, iterations being images in jobs that train nothing;
    `metric` is the newest validation figure, `best` the best so far, each None before the first validation;
    `seconds_left` is an estimate."""

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    loss: float | None = None
    metric: float | None = None
    best: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job. `name` is the model or method; times are seconds since the epoch, None while they have not come.

    `details` says in words what happened, oldest first; `stats` is what `/info/` shows of a training; `result` is what
    it made. `stopping` is set once it was asked to stop.
    """

    id: str
    kind: Kind
    name: str
    request: Mapping[str, Any]
    user: str
    created: float
    state: State = State.SUBMITTED
    started: float | None = None
    ended: float | None = None
    stopping: bool = False
    details: Sequence[str] = ()
    progress: Progress | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """True once it has ended."""
        return self.ended is not None

    def as_json(self) -> dict[str, Any]:
        """The task as MONAI Label's clients know it, and beside that what ours read."""
        known: dict[str, Any] = {
            "id": self.id,
            "status": self.state.value,
            "request": dict(self.request),
            "start_ts": stamp(self.created),
        }
        if self.details:
            known["details"] = list(self.details)
        if self.ended is not None:
            known["end_ts"] = stamp(self.ended)
        progress = asdict(self.progress) if self.progress else None
        result = {"result": dict(self.result)} if self.result else {}
        return {**known, "kind": self.kind.value, "name": self.name, "progress": progress, **result}

    def train_stats(self) -> dict[str, Any]:
        """What `/info/` shows of a training: empty before its first progress."""
        if self.progress is None:
            return {}
        best = self.progress.best or 0.0
        seconds = (self.ended or time.time()) - (self.started or self.created)
        part = {"metrics": {}, "key_metric_name": "metric", "best_metric": best}
        return {
            "total_epochs": self.progress.epochs,
            "total_iterations": self.progress.iterations,
            "epoch": self.progress.epoch,
            "start_ts": stamp(self.created),
            ("total_time" if self.over else "current_time"): duration(seconds),
            "best_metric": best,
            "train": {**part, "best_metric_epoch": self.progress.epoch},
            "eval": {**part, "best_metric_epoch": self.progress.epoch},
            **self.stats,
        }


def finite(value: T) -> T:
    """The value with every NaN or infinite number in it, at any depth, replaced by None: JSON has no such numbers.

    Args:
        value: a number, text, mapping, sequence or dataclass, as a job's record holds them.
    """
    found: Any = value
    if isinstance(value, float):
        found = value if math.isfinite(value) else None
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{field.name: finite(getattr(value, field.name)) for field in fields(value)})
    elif isinstance(value, Mapping):
        found = {key: finite(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        found = type(value)(finite(item) for item in value)
    return cast(T, found)


def stamp(seconds: float) -> str:
    """Local time as MONAI Label writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Ledger(Protocol):
    """Where jobs are kept. Every method returns only once its effect survives power loss."""

    def jobs(self) -> list[Job]:
        """All, in the order they were first saved."""

    def save_job(self, job: Job) -> None:
        """Record the job as it is now."""

    def forget_jobs(self, ids: Sequence[str]) -> None:
        """Drop their records."""
