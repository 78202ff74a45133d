"""ServerJobs: the queue of one server, with a runner for each kind of job."""

from __future__ import annotations

from typing import Protocol

from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.datastore.job_record import Ledger
from rayapp.jobs.queue import JobQueue
from rayapp.jobs.scoring_job import AUTO, AutoScore, BatchInference, Planner, Scoring, ScoringBackend
from rayapp.jobs.training_job import Publisher, Training, TrainingBackend
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind


class Store(Datastore, Ledger, Protocol):
    """The datastore, which also stores the jobs' records."""


class ServerJobs(JobQueue):
    """Training, scoring and batch inference; with the setting `auto_score`, scoring also starts by itself."""

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
        """Start the queue.

        Args:
            settings: The server's settings.
            datastore: Images, labels, scores and the jobs' records.
            publisher: Publishes the results of trainings.
            planner: Resolves scoring requests.
            training: Executes trainings.
            scoring: Works on images, for scoring and batch inference.
        """
        scores = Scoring(settings=settings, datastore=datastore, backend=scoring, models=planner)
        super().__init__(
            datastore,
            {
                JobKind.TRAIN: Training(settings=settings, datastore=datastore, models=publisher, backend=training),
                JobKind.SCORING: scores,
                JobKind.BATCH: BatchInference(settings=settings, datastore=datastore, backend=scoring),
            },
            Withdrawals.of(settings.workspace),
        )
        self._automatic = AutoScore(self, scores) if settings.conf.get(AUTO) else None

    def close(self) -> None:
        """Interrupt running jobs, which the next queue resumes, and end the threads."""
        if self._automatic is not None:
            self._automatic.close()
        super().close()
