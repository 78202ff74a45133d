"""The services behind the gateway in this process: what a server runs as Ray actors, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.jobs.server_jobs import ServerJobs
from rayapp.serving.catalogue import Catalogue
from tests.jobs.plain import PlainScoringBackend, PlainTrainingBackend


def local(settings: Settings) -> LocalDatastore:
    """The study folder, as a test changes it: nothing is watched, and what is there counts at once."""
    return LocalDatastore(Path(settings.studies), watch=False, settle=0.0)


class InProcess:
    """`rayapp.launch.Parts` as plain objects; jobs run in threads."""

    def __init__(self, open_store: Callable[[Settings], LocalDatastore] = local) -> None:
        self._open_store = open_store

    def datastore(self, settings: Settings) -> AbstractContextManager[LocalDatastore]:
        """See `Parts`."""
        return closing(self._open_store(settings))

    def models(self, settings: Settings, datastore: LocalDatastore) -> AbstractContextManager[Catalogue]:
        """See `Parts`."""
        return nullcontext(Catalogue(settings, datastore))

    def jobs(
        self, settings: Settings, datastore: LocalDatastore, models: Catalogue
    ) -> AbstractContextManager[ServerJobs]:
        """See `Parts`."""
        return closing(
            ServerJobs(
                settings,
                datastore=datastore,
                publisher=models,
                planner=models,
                training=PlainTrainingBackend(settings),
                scoring=PlainScoringBackend(settings, datastore),
            )
        )
