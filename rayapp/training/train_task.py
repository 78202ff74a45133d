"""The TrainTask protocol, and the messages between a training run and its host.

A *run* trains one model once. Its *host* executes it: the workers of Ray Train on a cluster, or one plain process.
Every worker of a run calls the same `train`. The host gives each worker its rank, receives progress and checkpoints,
and requests the end of the run. A run that is started again with the same request resumes from the host's newest
checkpoint.
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
    """A trainer as `/info/` lists it.

    Attributes:
        description: One line for people.
        labels: Value by structure name.
        config: The options that a request may set, with their defaults; plain JSON.
    """

    description: str
    labels: Mapping[str, int]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A labelled image on shared storage.

    Attributes:
        image: The image's file, or the folder of a DICOM series.
        label: The label map's file.
        info: The label's info: names of its values (see `rayapp.imaging.label_names`), and what is unannotated (see
            `rayapp.training.partial`).
        patient: Key of the image's patient; None if unknown.
    """

    image: Path
    label: Path
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    patient: str | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Pair:
        """The pair of an entry of `Datastore.datalist(immutable=True)`."""
        return cls(
            image=Path(entry["image"]),
            label=Path(entry["label"]),
            info=entry.get("info", {}),
            patient=entry.get("patient"),
        )


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A run, described identically to each of its workers.

    Attributes:
        model: Name of the model.
        pairs: The labelled images, for training and validation.
        folder: The run's own folder on shared storage, where rank 0 writes curves, TensorBoard events and pictures.
        params: The request's values, which take precedence over `TrainerInfo.config`.
        parent: The version to fine-tune; None to train from scratch.
        baseline: The version in production. It is measured on this run's validation pairs, so that a worse candidate is
            not promoted over it.
        tried: Most images for which a version of the model was designed from scratch, promoted or not.
    """

    model: str
    pairs: Sequence[Pair]
    folder: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: ModelVersion | None = None
    baseline: ModelVersion | None = None
    tried: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        weights: A safetensors file in the run's folder.
        metric: Validation metric of these weights, greater is better; None if it could not be measured.
        baseline: The same metric of the request's baseline on the same pairs; None if it could not be measured.
        card: The version's card as `rayapp.models.store` keeps it, including `metrics`.
        stats: Statistics that `/info/` shows as `train_stats`.
    """

    weights: Path
    metric: float | None
    baseline: float | None
    card: Mapping[str, Any]
    stats: Mapping[str, Any]


class Host(Protocol):
    """The environment that executes one worker of a run."""

    @property
    def rank(self) -> int:
        """This worker's rank, from 0. Rank 0 writes checkpoints and results."""

    @property
    def world_size(self) -> int:
        """Number of workers. With more than one, the `torch.distributed` process group is initialised."""

    @property
    def device(self) -> torch.device:
        """The device of this worker."""

    def resume(self) -> Path | None:
        """The folder of the run's newest complete checkpoint; None for a run that starts from its beginning."""

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:
        """Report progress, as often as wished, and optionally persist a checkpoint.

        Args:
            progress: How far the run is.
            checkpoint: Folder to persist. Every worker passes one, at the same iteration; that of rank 0 is copied
                before this returns, the others are ignored.
        """

    def stopped(self) -> bool:
        """True once the run shall end. Called before each iteration; all workers get the same answer."""


class TrainTask(Protocol):
    """A trainer of one model."""

    @property
    def info(self) -> TrainerInfo:
        """The trainer as `/info/` lists it. Called often, so it must be cheap."""

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """Train in one worker.

        Args:
            request: The run.
            host: The worker's environment.

        Returns:
            The result on rank 0; None on other ranks, or when the run was stopped.

        Raises:
            BadRequest: For params or data that cannot be trained with.
        """
