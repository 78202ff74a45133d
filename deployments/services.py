"""Services: typed clients of everything that the gateway calls.

In a server they call Ray actors and the inference deployment; in tests, plain objects of the same process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from deployments.clients import DatastoreClient, JobsClient, ModelsClient, SessionsClient, UsersClient
from rayapp.config import Settings
from rayapp.serving.messages import HandedOut, InferCall, InferReply


class Inference(Protocol):
    """Where clicks go."""

    async def infer(self, call: InferCall) -> InferReply:
        """Raises what `rayapp.errors` names; Busy when every replica's queue is full."""

    def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """The answer in stages, to an interaction's turn. Raises as `infer`."""

    def prefetch(self, handed_out: HandedOut) -> None:
        """Tell the image's replica that somebody is about to work on it. Waits for nothing and raises nothing."""


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
