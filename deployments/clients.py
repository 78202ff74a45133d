"""Typed asynchronous clients of the services behind the gateway and the replicas.

Each names the methods that are called through it; parameters and results are those of the plain class or protocol.
"""

from __future__ import annotations

from pathlib import Path

from actors.client import LONG_S, ActorClient, forwarded
from rayapp.datastore.interfaces import Datastore
from rayapp.datastore.sessions import SessionStore
from rayapp.files.durable import new_path
from rayapp.jobs.queue import JobQueue
from rayapp.oidc import OidcUsers
from rayapp.serving.catalogue import Catalogue
from rayapp.users import UserStore


class DatastoreClient(ActorClient[Datastore]):
    """Images, labels, scores and the click log."""

    status = forwarded(Datastore.status)
    document = forwarded(Datastore.document, patience=LONG_S)
    datalist = forwarded(Datastore.datalist, patience=LONG_S)
    archive = forwarded(Datastore.archive, patience=LONG_S)
    refresh = forwarded(Datastore.refresh, patience=LONG_S)
    staging = forwarded(Datastore.staging)

    image = forwarded(Datastore.image, patience=LONG_S)
    image_ids = forwarded(Datastore.image_ids)
    instances = forwarded(Datastore.instances, patience=LONG_S)
    add_image = forwarded(Datastore.add_image, patience=LONG_S)
    remove_image = forwarded(Datastore.remove_image)
    update_image_info = forwarded(Datastore.update_image_info)
    quarantine = forwarded(Datastore.quarantine)

    label = forwarded(Datastore.label, patience=LONG_S)
    labels = forwarded(Datastore.labels, patience=LONG_S)
    revisions = forwarded(Datastore.revisions)
    save_label = forwarded(Datastore.save_label, patience=LONG_S)
    remove_label = forwarded(Datastore.remove_label)
    update_label_info = forwarded(Datastore.update_label_info)

    append_turn = forwarded(Datastore.append_turn)
    event = forwarded(Datastore.event)
    events = forwarded(Datastore.events)
    append_events = forwarded(Datastore.append_events)

    _folder: Path | None = None

    async def stage(self, suffix: str) -> Path:
        """As `Datastore.stage`; asks the store for its folder only once."""
        if self._folder is None:
            self._folder = await self.staging()
        return new_path(self._folder, suffix)


class ModelsClient(ActorClient[Catalogue]):
    """The app and its model versions."""

    describe = forwarded(Catalogue.describe, patience=LONG_S)
    reload = forwarded(Catalogue.reload, patience=LONG_S)
    next_image = forwarded(Catalogue.next_image, patience=LONG_S)
    label_saved = forwarded(Catalogue.label_saved, patience=LONG_S)
    models = forwarded(Catalogue.models)
    production = forwarded(Catalogue.production)
    upload = forwarded(Catalogue.upload, patience=LONG_S)
    promote = forwarded(Catalogue.promote, patience=LONG_S)
    rollback = forwarded(Catalogue.rollback, patience=LONG_S)
    retire = forwarded(Catalogue.retire)


class JobsClient(ActorClient[JobQueue]):
    """Background jobs."""

    job = forwarded(JobQueue.job)
    jobs = forwarded(JobQueue.jobs)
    running = forwarded(JobQueue.running)
    submit = forwarded(JobQueue.submit)
    cancel = forwarded(JobQueue.cancel)
    train_stats = forwarded(JobQueue.train_stats)


class SessionsClient(ActorClient[SessionStore]):
    """Images that clients send for a while, without storing them."""

    stage = forwarded(SessionStore.stage)
    create = forwarded(SessionStore.create)
    get = forwarded(SessionStore.get)
    image = forwarded(SessionStore.image)
    remove = forwarded(SessionStore.remove)
    sweep = forwarded(SessionStore.sweep)
    count = forwarded(SessionStore.count)


class UsersClient(ActorClient[UserStore | OidcUsers]):
    """Accounts and their keys, or tokens of a provider."""

    authenticate = forwarded(UserStore.authenticate)
    sign_in = forwarded(UserStore.sign_in)
