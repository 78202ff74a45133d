"""The jobs actor: a thin shell around `rayapp.jobs.server_jobs.ServerJobs`, whose work runs in this cluster."""

from __future__ import annotations

from typing import cast

import ray
from ray.actor import ActorHandle

from actors import OWNER, name_of
from actors.client import BlockingActorClient
from actors.datastore import remote_datastore
from actors.environment import runtime_env
from actors.scoring import RayScoringBackend
from actors.training import RayTrainingBackend
from rayapp.config import Settings
from rayapp.jobs.scoring_job import Planner
from rayapp.jobs.server_jobs import ServerJobs
from rayapp.jobs.training_job import Publisher
from rayapp.runtime import logs

NAME = "jobs"
CONCURRENCY = 32
PUBLISHING_S = 600.0
"""Time limit of a publication, which loads the network on a machine that may be busy with clicks."""


class JobsActor(ServerJobs):
    """One per cluster. Its death ends the running jobs; restarted by Ray, it resumes them."""

    def __init__(self, settings: Settings, datastore: ActorHandle, models: ActorHandle) -> None:
        logs.configure(settings)
        super().__init__(
            settings,
            datastore=remote_datastore(datastore),
            publisher=cast(Publisher, BlockingActorClient(models, patience=PUBLISHING_S)),
            planner=cast(Planner, BlockingActorClient(models)),
            training=RayTrainingBackend(settings, ray.get_runtime_context().current_actor),
            scoring=RayScoringBackend(settings, datastore),
        )


def start_jobs(settings: Settings, datastore: ActorHandle, models: ActorHandle) -> ActorHandle:
    """Start the actor, or find it."""
    return (
        ray.remote(JobsActor)
        .options(
            **OWNER,
            name=name_of(NAME, settings),
            max_task_retries=3,
            max_concurrency=CONCURRENCY,
            runtime_env=runtime_env(settings),
        )
        .remote(settings, datastore, models)
    )
