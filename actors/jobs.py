"""The jobs actor: a thin shell around `rayapp.jobs.queue.JobQueue`, with the runners of this cluster."""

from __future__ import annotations

from typing import cast

import ray
from ray.actor import ActorHandle

from actors import OWNER
from actors.client import BlockingActorClient
from actors.datastore import remote_datastore
from actors.environment import runtime_env
from actors.scoring import RayScoringBackend
from actors.training import RayTrainingBackend
from rayapp.config import Settings
from rayapp.datastore.job_record import Kind
from rayapp.jobs.queue import JobQueue
from rayapp.jobs.scoring_job import AUTO, AutoScore, BatchInference, Planner, Scoring
from rayapp.jobs.training_job import Publisher, Training
from rayapp.runtime import logs

NAME = "jobs"
CONCURRENCY = 32
PUBLISHING_S = 600.0
"""How long a publication may take: it loads the network, on a machine that may be busy with clicks."""


class JobsActor(JobQueue):
    """One per cluster. Killed, it takes the running jobs with it; restarted by Ray, it goes on with them."""

    def __init__(self, settings: Settings, datastore: ActorHandle, models: ActorHandle) -> None:
        logs.configure(settings)
        store = remote_datastore(datastore)
        me = ray.get_runtime_context().current_actor
        publisher = cast(Publisher, BlockingActorClient(models, patience=PUBLISHING_S))
        training = Training(settings=settings, datastore=store, models=publisher, fit=RayTrainingBackend(settings, me))
        crew = RayScoringBackend(settings, datastore)
        planner = cast(Planner, BlockingActorClient(models))
        scoring = Scoring(settings=settings, datastore=store, crew=crew, models=planner)
        batch = BatchInference(settings=settings, datastore=store, crew=crew)
        super().__init__(store, {Kind.TRAIN: training, Kind.SCORING: scoring, Kind.BATCH: batch})
        self._automatic = AutoScore(self, scoring) if settings.conf.get(AUTO) else None


def start_jobs(settings: Settings, datastore: ActorHandle, models: ActorHandle) -> ActorHandle:
    """Start (or find) the actor."""
    return (
        ray.remote(JobsActor)
        .options(
            **OWNER,
            name=NAME,
            max_task_retries=3,
            max_concurrency=CONCURRENCY,
            runtime_env=runtime_env(settings),
        )
        .remote(settings, datastore, models)
    )
