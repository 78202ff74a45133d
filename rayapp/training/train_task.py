"""The TrainTask seam: what can be trained, and the messages between a training run and its host.

A *run* trains one model once. Its *host* is whatever runs it: workers of Ray Train on a cluster, or one plain process.
The same `train` runs in every worker of a run; the host tells it its rank, takes its progress and checkpoints, and
asks it to stop. A run that is started again with the same request goes on from the host's newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rayapp.datastore.job_record import Progress as Progress
from rayapp.models.store import ModelVersion

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TrainerInfo:
    """A trainer as `/info/` lists it; `config` holds the options a request may set, with their defaults."""

    description: str
    labels: Mapping[str, int]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One training example: an image's file (or DICOM folder) and its label map's, on shared storage."""

    image: Path
    label: Path


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One run, the same for each of its workers.

    `params` are the request's values over `TrainerInfo.config`. `parent` is the version to start from, if any.
    `baseline` is the version that serves: it is measured on this run's validation pairs too, so that a worse candidate
    need not replace it. `folder` is the run's own, on shared storage: curves, events and pictures go there (from
    rank 0).
    """

    model: str
    pairs: Sequence[Pair]
    folder: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: ModelVersion | None = None
    baseline: ModelVersion | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run made: a whole safetensors file in the run's folder, the card that describes it (as
    `rayapp.models.store` keeps it, `metrics` among it) and the statistics that `/info/` shows as `train_stats`.

    `metric` is the validation figure (greater is better) of these weights, `baseline` that of the request's baseline
    on the same pairs; None for one that could not be measured."""

    weights: Path
    metric: float | None
    baseline: float | None
    card: Mapping[str, Any]
    stats: Mapping[str, Any]


class Host(Protocol):
    """What a worker asks of, and tells, whoever runs it."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0; rank 0 validates, saves and reports."""

    @property
    def world_size(self) -> int:
        """Workers in this run; more than one have an initialised `torch.distributed` process group."""

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""

    def resume(self) -> Path | None:
        """The folder of the newest whole checkpoint of this run; None when it starts afresh."""

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:
        """Tell how far the run is, as often as one likes, and hand over a checkpoint folder to keep.

        With a checkpoint every worker calls it, at the same iteration and each with a path; the folder of rank 0 is
        copied before this returns, the others' are not looked at.
        """

    def stopped(self) -> bool:
        """True when the run is to end now; asked before each iteration, with the same answer in every worker."""


class TrainTask(Protocol):
    """Something an app can train."""

    @property
    def info(self) -> TrainerInfo:
        """What `/info/` shows; cheap."""

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """Train; the result on rank 0, None on other ranks or when stopped.

        Raises BadRequest for params or data that cannot be trained with.
        """
