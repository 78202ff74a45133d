"""Services: all that the gateway talks to, as asynchronous faces.

`rayapp.launch` fills it with actors and a deployment handle; tests may fill it with the plain objects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from actors.face import ActorClient
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
    """`datastore` answers the `Datastore` protocol, `models` a `Catalogue`'s methods, `jobs` a `JobQueue`'s, `sessions`
    a `SessionStore`'s, `users` a `UserStore`'s."""

    settings: Settings
    datastore: ActorClient
    models: ActorClient
    jobs: ActorClient
    sessions: ActorClient
    users: ActorClient
    inference: Inference
