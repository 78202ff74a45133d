"""The composition root: starts Ray, the actors and Serve, and stops them. The only module that knows every room."""

from __future__ import annotations

import contextlib
import logging
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

from actors.datastore import start_datastore
from actors.jobs import start_jobs
from actors.models import start_models
from actors.node import SIGNALS, Node, free_port, joined
from actors.placement import coming
from actors.predecessor import taken_over
from actors.ray_errors import error_in, unwrapped_errors
from deployments.application import Application, settled
from rayapp import errors
from rayapp.config import Settings
from rayapp.errors import RayappError
from rayapp.protocol import Route
from rayapp.runtime import logs

logger = logging.getLogger(__name__)

READY_TIMEOUT = 120.0
"""Seconds for the replicas to start once no node of the cluster is being started any more."""
FOLLOW_S = 5.0
"""Seconds between two looks at the nodes of a cluster that was joined."""
STATUS_S = 0.3
"""Seconds between two questions whether the replicas run; each takes time of Serve's controller, which starts them."""
PULSE_S = 1.0
"""Seconds between two checks that Ray's own processes are alive."""
ACTOR_CLOSE_TIMEOUT = 30.0
LOST = (
    "a process of Ray's own ended, as when the machine runs out of memory, and the server with it; what was "
    "acknowledged is on disk: start it again"
)


class _Stopped(Exception):
    """A signal arrived while the server was starting."""


def serve_until_stopped(settings: Settings, *, on_ready: Callable[[str], None], on_wait: Callable[[str], None]) -> None:
    """Run a server until SIGINT or SIGTERM; return once everything is drained and stopped.

    A signal during the start takes effect at the next step.

    Args:
        settings: of the server.
        on_ready: called with the server's address once every route answers.
        on_wait: called with what the start waits for, each time that changes.

    Raises:
        RayappError: the server did not start, or a process of Ray's own ended; nothing is left running.
    """
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    settings = settings.model_copy(update={"port": settings.port or free_port(settings.host)})
    settings.workspace.mkdir(parents=True, exist_ok=True)
    logs.rotate(settings)
    logs.configure(settings)

    def go_on() -> None:
        if stop.is_set():
            raise _Stopped
        if node.lost:
            raise RayappError(LOST)

    with contextlib.suppress(_Stopped), joined(settings) as node:
        if settings.ray_address is not None:
            settings = settled(settings)
        with running(settings, node, go_on=go_on, on_wait=on_wait) as (url, follow):
            on_ready(url)
            look = time.monotonic()
            while not stop.wait(PULSE_S):
                go_on()
                if settings.ray_address is not None and time.monotonic() > look + FOLLOW_S:
                    look = time.monotonic()
                    follow()
            logger.info("draining")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The services behind the gateway: handles of Ray actors, or the plain objects that these wrap."""

    datastore: Any
    models: Any
    jobs: Any


class Parts(Protocol):
    """Ways to start each service behind the gateway; a service ends when its context is left."""

    def datastore(self, settings: Settings) -> AbstractContextManager[Any]:
        """The one writer of the study set."""

    def models(self, settings: Settings, datastore: Any) -> AbstractContextManager[Any]:
        """The owner of the app and its model versions."""

    def jobs(self, settings: Settings, datastore: Any, models: Any) -> AbstractContextManager[Any]:
        """The queue of background jobs."""


@contextlib.contextmanager
def composed(settings: Settings, parts: Parts) -> Iterator[Backend]:
    """The services behind the gateway, each given those that it calls; they end in the opposite order."""
    with (
        parts.datastore(settings) as datastore,
        parts.models(settings, datastore) as models,
        parts.jobs(settings, datastore, models) as jobs,
    ):
        yield Backend(datastore=datastore, models=models, jobs=jobs)


class Actors:
    """`Parts` as Ray actors on a node. Once the node is lost, no service is asked to end, since none would answer."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @contextlib.contextmanager
    def datastore(self, settings: Settings) -> Iterator[ActorHandle]:
        """See `Parts`."""
        if settings.ray_address is not None and (ended := taken_over(settings)):
            logger.warning("actors of a server that crashed were ended, since it had other settings: %s", ended)
        with self._killed(start_datastore(settings)) as handle:
            try:
                yield handle
            finally:
                if not self._node.lost:
                    _close(handle)

    def models(self, settings: Settings, datastore: Any) -> AbstractContextManager[ActorHandle]:
        """See `Parts`."""
        return self._killed(start_models(settings, datastore))

    def jobs(self, settings: Settings, datastore: Any, models: Any) -> AbstractContextManager[ActorHandle]:
        """See `Parts`. With it end the runs under way; their records say RUNNING, so the next start resumes them."""
        return self._killed(start_jobs(settings, datastore, models))

    @contextlib.contextmanager
    def _killed(self, handle: ActorHandle) -> Iterator[ActorHandle]:
        try:
            yield handle
        finally:
            if not self._node.lost:
                ray.kill(handle)


@contextlib.contextmanager
def running(
    settings: Settings, node: Node, *, go_on: Callable[[], None], on_wait: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Start a server; it is stopped when the block ends.

    Args:
        settings: of the server.
        node: that it runs on.
        go_on: called between the steps of the start, to interrupt it by raising.
        on_wait: called with what the start waits for, each time that changes.

    Yields:
        The server's address, for example `http://127.0.0.1:8000`; and what to call now and then, so that replicas
        follow the cluster's nodes.
    """
    go_on()
    with composed(settings, Actors(node)) as backend:
        application = Application(settings, datastore=backend.datastore, models=backend.models, jobs=backend.jobs)
        try:
            go_on()
            application.deploy()
            # A broken app or an unreadable folder raises here, before anything answers.
            described = backend.models.describe.remote()
            _answer(backend.datastore.status.remote())
            _answer(described)
            yield _wait_until_answering(settings, application, go_on, on_wait), _following(application)
        finally:
            if not node.lost:
                application.delete()  # what is being answered is drained


def _following(application: Application) -> Callable[[], None]:
    """A function that makes replicas follow the nodes; a fault of Ray's is only logged, and it is tried again."""

    def follow() -> None:
        try:
            application.follow(serving=True)
        except ray.exceptions.RayError:
            logger.exception("the replicas could not be placed anew")

    return follow


def _wait_until_answering(
    settings: Settings, application: Application, go_on: Callable[[], None], on_wait: Callable[[str], None]
) -> str:
    """The server's address, once all replicas run and `GET /info/` answers; 401 counts as an answer."""
    deadline, told = time.monotonic() + READY_TIMEOUT, ""
    look = time.monotonic()
    while (status := application.status()).status != "RUNNING":
        go_on()
        if settings.ray_address is not None and time.monotonic() > look:
            look = time.monotonic() + PULSE_S
            number = coming()
            if number or application.follow(serving=False):
                deadline = time.monotonic() + READY_TIMEOUT
            text = f"waiting for {number} node(s) of the cluster to start" if number else "starting the replicas"
            if text != told:
                told = text
                on_wait(text)
        account = "\n".join([status.message, *(each.message for each in status.deployments.values())])
        ours = error_in(account)  # Serve retries for minutes, but a broken app stays broken
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline or isinstance(ours, errors.AppBroken):
            last = (account.strip().splitlines() or [status.status])[-1]
            raise ours or RayappError(f"the server did not start: {last}")
        time.sleep(STATUS_S)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'http' if settings.tls_cert is None else 'https'}://{shown}:{settings.port}"
    while True:
        go_on()
        try:
            # The certificate need not name the address that this machine is asked by.
            with urllib.request.urlopen(url + Route.INFO, timeout=10, context=ssl._create_unverified_context()):
                return url
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return url
            if time.monotonic() > deadline:
                raise
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _answer(reference: Any) -> Any:
    """An actor's answer. An error of `rayapp.errors`, also one that its constructor raised, arrives as itself."""
    try:
        with unwrapped_errors():
            return ray.get(reference)
    except ray.exceptions.ActorDiedError as error:
        raise (error_in(str(error)) or error) from None


def _close(datastore: Any) -> None:
    """Let the datastore write what is pending. Everything acknowledged is durable already."""
    try:
        ray.get(datastore.close.remote(), timeout=ACTOR_CLOSE_TIMEOUT)
    except ray.exceptions.RayError:
        logger.exception("the datastore did not close by itself; the next start repairs what is due")
