"""One asynchronous face for a plain object or for the Ray actor that wraps it; and one that waits, for an actor.

The gateway and the replicas speak to `ActorClient`s only, so the same code, and the same test, runs against both. A
call never blocks the event loop: the plain object's method runs in a thread, the actor's through Ray. An error of
`rayapp.errors` raised inside the actor arrives as itself; an actor that is away is Busy.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import ray
import ray.actor
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rayapp.errors import Busy, RayappError

PATIENCE_S = 60.0
_AWAY = "a part of the server is starting again; try again in a second"


class ActorClient:
    """`await face.method(*args, **kwargs)` for any method of the wrapped object or actor."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._target, name)
        if isinstance(self._target, ray.actor.ActorHandle):
            return functools.partial(_remote, method)
        return functools.partial(asyncio.to_thread, method)


async def _remote(method: Any, /, *args: Any, **kwargs: Any) -> Any:
    try:
        return await method.remote(*args, **kwargs)
    except RayTaskError as error:
        if isinstance(error.cause, RayappError):
            raise error.cause from None
        raise
    except RayActorError:
        raise Busy(_AWAY) from None


class BlockingActorClient:
    """`waiting.method(*args, **kwargs)` waits for the actor's answer: for code that runs in threads of other actors."""

    def __init__(self, handle: ray.actor.ActorHandle, *, patience: float = PATIENCE_S) -> None:
        self._handle = handle
        self._patience = patience

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(_answer, getattr(self._handle, name), self._patience)


def _answer(method: Any, patience: float, /, *args: Any, **kwargs: Any) -> Any:
    try:
        return ray.get(method.remote(*args, **kwargs), timeout=patience)
    except RayTaskError as error:
        if isinstance(error.cause, RayappError):
            raise error.cause from None
        raise
    except (RayActorError, GetTimeoutError):
        raise Busy(_AWAY) from None
