"""The datastore actor: a thin shell around one `LocalDatastore`, the one writer of a study set."""

from __future__ import annotations

import ray
from ray.actor import ActorHandle

from actors import OWNER
from actors.face import Waiting
from rayapp import logs
from rayapp.config import Settings
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.local import LocalDatastore

NAME = "datastore"
CONCURRENCY = 16
"""Calls answered at once, each on its own thread; saves that meet share one sync."""
RETRIES = 5
PATIENCE_S = 60.0


class DatastoreActor(LocalDatastore):
    """Every method of `LocalDatastore`, each safe to repeat.

    Killed, it is restarted by Ray and finds everything acknowledged; the kernel has released the folder's lock.
    """

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings)
        super().__init__(settings.studies, patience=PATIENCE_S)


class DicomwebActor(DicomwebDatastore):
    """Every method of `DicomwebDatastore`, each safe to repeat; as `DatastoreActor` otherwise."""

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings)
        super().__init__(settings, patience=PATIENCE_S)


def start_datastore(settings: Settings) -> ActorHandle:
    """Start (or find) the actor. Calls cut short by its death are made again once it is back."""
    return (
        ray.remote(DicomwebActor if settings.dicomweb.url else DatastoreActor)
        .options(
            **OWNER,
            name=NAME,
            max_task_retries=RETRIES,
            max_concurrency=CONCURRENCY,
        )
        .remote(settings)
    )


class RemoteDatastore(Waiting):
    """The `Datastore` protocol, synchronously, on the actor: for code that runs in other actors."""
