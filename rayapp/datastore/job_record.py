"""Job: the record of one background job, as it is stored and as clients read it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar, cast

from rayapp import responses
from rayapp.protocol import JobKind

T = TypeVar("T")

DETAILS = 20
"""Lines of `details` that are kept."""


class State(StrEnum):
    """State of a job; the last three are final."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    ERROR = "ERROR"
    STOPPED = "STOPPED"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a running job.

    Attributes:
        epoch: the current epoch, from 1.
        epochs: number of epochs planned.
        iteration: the current iteration, from 1; in jobs that do not train, an iteration is one image.
        iterations: number of iterations planned.
        loss: the newest training loss.
        metric: the newest validation metric; None before the first validation.
        best: the best validation metric so far; None before the first validation.
        seconds_left: estimated time until the job ends.
    """

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
    """One background job. Times are seconds since the epoch; None if not reached yet.

    Attributes:
        id: unique id.
        kind: the kind of job.
        name: the model, or the scoring method.
        request: parameters of the request that submitted it.
        user: the user who submitted it.
        created: time of submission.
        state: current state.
        started: time when it began to run.
        ended: time when it reached a final state.
        stopping: True once it was asked to stop.
        details: messages for people, oldest first.
        progress: current progress.
        stats: extra figures of a training for `/info/`.
        result: the job's result.
    """

    id: str
    kind: JobKind
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
        """True once the job has reached a final state."""
        return self.ended is not None

    def as_json(self) -> responses.Job:
        """The job as clients read it, those of MONAI Label included."""
        shown = responses.Job(
            id=self.id,
            status=self.state.value,
            request=dict(self.request),
            start_ts=local_time(self.created),
            kind=self.kind.value,
            name=self.name,
            progress=asdict(self.progress) if self.progress else None,
        )
        if self.details:
            shown["details"] = list(self.details)
        if self.ended is not None:
            shown["end_ts"] = local_time(self.ended)
        if self.result:
            shown["result"] = dict(self.result)
        return shown

    def train_stats(self) -> dict[str, Any]:
        """A training's entry in `/info/`; empty before its first progress report."""
        if self.progress is None:
            return {}
        best = self.progress.best or 0.0
        seconds = (self.ended or time.time()) - (self.started or self.created)
        part = {"metrics": {}, "key_metric_name": "metric", "best_metric": best}
        return {
            "total_epochs": self.progress.epochs,
            "total_iterations": self.progress.iterations,
            "epoch": self.progress.epoch,
            "start_ts": local_time(self.created),
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
    result: Any = value
    if isinstance(value, float):
        result = value if math.isfinite(value) else None
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{field.name: finite(getattr(value, field.name)) for field in fields(value)})
    elif isinstance(value, Mapping):
        result = {key: finite(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(finite(item) for item in value)
    return cast(T, result)


def local_time(seconds: float) -> str:
    """Local time in MONAI Label's format."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Duration as `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Ledger(Protocol):
    """The store of job records. Each method returns only once its effect survives power loss."""

    def jobs(self) -> list[Job]:
        """All records, in the order in which the jobs were first saved."""

    def save_job(self, job: Job) -> None:
        """Insert or replace the job's record."""

    def forget_jobs(self, ids: Sequence[str]) -> None:
        """Delete the records of these jobs."""
