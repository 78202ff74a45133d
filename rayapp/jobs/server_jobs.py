"""ServerJobs: the queue of one server, with a runner for each kind of job."""

from __future__ import annotations

from typing import Protocol

from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.datastore.job_record import Ledger
from rayapp.jobs.queue import JobQueue
from rayapp.jobs.scoring_job import AUTO, AutoScore, BatchInference, Planner, Scoring, ScoringBackend
from rayapp.jobs.training_job import Publisher, Training, TrainingBackend
from rayapp.protocol import JobKind


class Store(Datastore, Ledger, Protocol):
    """The study set, and the records of its jobs."""


class ServerJobs(JobQueue):
    """Training, scoring and batch inference; scoring also starts by itself where the settings ask for it.

    Args:
        datastore: images, labels, scores and the job records.
        publisher: takes the versions that trainings make.
        planner: says which model a scoring method asks, and with which options.
        training: runs trainers.
        scoring: runs models and scoring methods over images.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        datastore: Store,
        publisher: Publisher,
        planner: Planner,
        training: TrainingBackend,
        scoring: ScoringBackend,
    ) -> None:
        scores = Scoring(settings=settings, datastore=datastore, crew=scoring, models=planner)
        super().__init__(
            datastore,
            {
                JobKind.TRAIN: Training(settings=settings, datastore=datastore, models=publisher, fit=training),
                JobKind.SCORING: scores,
                JobKind.BATCH: BatchInference(settings=settings, datastore=datastore, crew=scoring),
            },
        )
        self._automatic = AutoScore(self, scores) if settings.conf.get(AUTO) else None

    def close(self) -> None:
        """End the queue; runs under way are cut short, and the next queue goes on with them."""
        if self._automatic is not None:
            self._automatic.close()
        super().close()
