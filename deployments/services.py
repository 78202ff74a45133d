"""Services: typed clients of everything that the gateway calls.

In a server they call Ray actors and the inference deployment; in tests, plain objects of the same process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.clients import DatastoreClient, JobsClient, ModelsClient, SessionsClient, UsersClient
from rayapp.config import Settings
from rayapp.datastore.sessions import SessionStore
from rayapp.oidc import OidcUsers
from rayapp.serving.messages import HandedOut, InferCall, InferReply
from rayapp.users import UserStore


class Inference(Protocol):
    """Runs models on images."""

    @property
    def ready(self) -> bool:
        """True once a replica has started."""

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call. Raises errors of `rayapp.errors`; Busy when every replica's queue is full."""

    def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """Answer a turn of an interaction in stages. Raises as `infer`."""

    def prefetch(self, handed_out: HandedOut) -> None:
        """Queue an image for prefetching. Waits for nothing and raises nothing."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """The settings, and a client of each service."""

    settings: Settings
    datastore: DatastoreClient
    models: ModelsClient
    jobs: JobsClient
    sessions: SessionsClient
    users: UsersClient
    inference: Inference

    @classmethod
    def of(cls, settings: Settings, *, datastore: Any, models: Any, jobs: Any, inference: Inference) -> Services:
        """Clients of Ray actors, or of the plain objects that these wrap.

        Sessions and users are files in the workspace, which every gateway replica reads by itself.
        """
        users = UserStore.of(settings.workspace)
        return cls(
            settings=settings,
            datastore=DatastoreClient(datastore),
            models=ModelsClient(models),
            jobs=JobsClient(jobs),
            sessions=SessionsClient(SessionStore.of(settings)),
            users=UsersClient(OidcUsers(settings.oidc, users) if settings.auth == "oidc" else users),
            inference=inference,
        )
