"""The datastore actor: a thin shell around one datastore, the only writer of a study set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from actors import OWNER, name_of
from actors.client import BlockingActorClient
from actors.environment import runtime_env
from rayapp.app.app_loader import brings_datastore, own_datastore
from rayapp.app.label_app import LabelApp
from rayapp.app.validation import STORE
from rayapp.config import Settings
from rayapp.jobs.server_jobs import Store
from rayapp.runtime import logs

NAME = "datastore"
CONCURRENCY = 16
"""Concurrent calls, each on its own thread; concurrent saves share one fsync."""
GROUPS = {
    "open": (16, ("image", "instances", "label", "labels")),
    "whole": (4, ("archive", "datalist", "document", "refresh")),
}
"""Concurrency groups with threads of their own, so that saves and clicks never wait for them: calls of `open` may wait
for a DICOM archive, and those of `whole` take long in a large store."""
RETRIES = 5


class DatastoreActor:
    """The datastore of the settings, or that of the app, with all its methods; each is safe to repeat.

    After a kill Ray restarts it; everything acknowledged is on disk, and the kernel has released the folder's lock.
    """

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings)
        open_store = own_datastore if brings_datastore(settings) else LabelApp.init_datastore
        self._store = open_store(settings)
        self._settings = settings

    def settings(self) -> Settings:
        """The settings that the actor was started with."""
        return self._settings


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: DatastoreActor, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._store, name)(*args, **kwargs)

    method.__name__ = name
    return method


_GROUP_OF = {name: group for group, (_, names) in GROUPS.items() for name in names}
for _name in STORE:
    _method = _passed_on(_name)
    if _name in _GROUP_OF:
        _method = ray.method(concurrency_group=_GROUP_OF[_name])(_method)
    setattr(DatastoreActor, _name, _method)


def start_datastore(settings: Settings) -> ActorHandle:
    """Start the actor, or find it. Calls that its death interrupts are repeated once it is back."""
    return (
        ray.remote(concurrency_groups={group: threads for group, (threads, _) in GROUPS.items()})(DatastoreActor)
        .options(
            **OWNER,
            name=name_of(NAME, settings),
            max_task_retries=RETRIES,
            max_concurrency=CONCURRENCY,
            runtime_env=runtime_env(settings) if brings_datastore(settings) else {},
        )
        .remote(settings)
    )


def remote_datastore(handle: ActorHandle) -> Store:
    """The actor's store for code in threads of other actors; calls wait, and raise Busy while the actor restarts."""
    return cast(Store, BlockingActorClient(handle))
