"""Typed asynchronous clients of the services, and a blocking one for code in other actors.

The gateway and the replicas call every service through a subclass of `ActorClient`, whether a Ray actor wraps the
service or a test runs it in the same process.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
import ray.actor
from ray.exceptions import GetTimeoutError, RayActorError

from actors.ray_errors import RESTARTING, unwrapped_errors
from rayapp.errors import Busy

PATIENCE_S = 60.0
"""Seconds that a call waits for the actor's answer: behind a cut network there is none until Ray gives the node up."""
LONG_S = 1800.0
"""Seconds for calls that retrieve from an archive, read a large store, or load a network."""
SILENT = "a component of the server did not answer in time; retry in 1 s"

Service = TypeVar("Service")
P = ParamSpec("P")
R = TypeVar("R")


class ActorClient(Generic[Service]):
    """Base of the typed clients: the methods of a service as coroutines, each declared with `forwarded`.

    A call never blocks the event loop: the method of a plain object runs in a thread, that of an actor through Ray. It
    raises what the method raises, and Busy while the actor restarts, and if it does not answer in time.

    Args:
        target: the service itself, or the handle of the Ray actor that wraps it.
    """

    def __init__(self, target: Service) -> None:
        self._target = target

    def _method(self, name: str, patience: float) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._target, name)
        if isinstance(self._target, ray.actor.ActorHandle):
            return functools.partial(_remote, method, patience)
        return functools.partial(asyncio.to_thread, method)


class forwarded(Generic[P, R]):  # noqa: N801 - reads as a decorator does
    """A client's method with the parameters and the result of the service's method, as a coroutine.

    `image = forwarded(Datastore.image)` declares `async def image(image_id: str) -> ImageRecord`.

    Args:
        method: of the service.
        patience: seconds that a call waits for an actor's answer.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], R], *, patience: float = PATIENCE_S) -> None:
        self._name, self._patience = method.__name__, patience

    def __get__(self, client: ActorClient[Any], owner: type) -> Callable[P, Awaitable[R]]:
        return client._method(self._name, self._patience)


async def _remote(method: Any, patience: float, /, *args: Any, **kwargs: Any) -> Any:
    limit = asyncio.timeout(patience)
    try:
        with unwrapped_errors():
            async with limit:
                return await method.remote(*args, **kwargs)
    except RayActorError:
        raise Busy(RESTARTING) from None
    except TimeoutError:
        if not limit.expired():  # the method's own
            raise
        raise Busy(SILENT) from None


class BlockingActorClient:
    """The methods of an actor as calls that wait for the answer, for threads of other actors.

    Its methods are the actor's own: cast it to the protocol that the actor answers.

    Raises:
        Busy: from every method, while the actor restarts and if it does not answer within `patience` seconds.
    """

    def __init__(self, handle: ray.actor.ActorHandle, *, patience: float = PATIENCE_S) -> None:
        self._handle = handle
        self._patience = patience

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(_answer, getattr(self._handle, name), self._patience)


def _answer(method: Any, patience: float, /, *args: Any, **kwargs: Any) -> Any:
    try:
        with unwrapped_errors():
            return ray.get(method.remote(*args, **kwargs), timeout=patience)
    except RayActorError:
        raise Busy(RESTARTING) from None
    except GetTimeoutError:
        raise Busy(SILENT) from None
