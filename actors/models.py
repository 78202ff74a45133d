"""The models actor: a thin shell around `rayapp.serving.catalogue.Catalogue`, which owns model versions and the app."""

from __future__ import annotations

import ray

from actors import OWNER, name_of
from actors.datastore import remote_datastore
from actors.environment import runtime_env
from rayapp.config import Settings
from rayapp.runtime import logs
from rayapp.serving.catalogue import Catalogue

NAME = "models"


class ModelsActor(Catalogue):
    """One per cluster. Restarted by Ray, it reads its state from disk."""

    def __init__(self, settings: Settings, datastore: ray.actor.ActorHandle) -> None:
        logs.configure(settings)
        super().__init__(settings, remote_datastore(datastore))


def start_models(settings: Settings, datastore: ray.actor.ActorHandle) -> ray.actor.ActorHandle:
    """Start the actor, or find it."""
    return (
        ray.remote(ModelsActor)
        .options(
            **OWNER,
            name=name_of(NAME, settings),
            max_task_retries=3,
            max_concurrency=8,
            runtime_env=runtime_env(settings),
        )
        .remote(settings, datastore)
    )
