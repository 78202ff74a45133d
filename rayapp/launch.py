"""The composition root: starts Ray, the actors and Serve, and stops them. The only module that knows every room."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve

from actors import NAMESPACE
from actors.datastore import start_datastore
from actors.jobs import start_jobs
from actors.models import start_models
from deployments.inference import inference_deployment
from deployments.ingress import gateway_deployment
from rayapp import logs
from rayapp.config import Settings
from rayapp.errors import RayappError
from rayapp.protocol import Path as Route

logger = logging.getLogger(__name__)

APPLICATION = "rayapp"
LOGICAL_CPUS = 4
"""The least logical CPUs of an embedded node: serving finds a place beside background work on a small machine."""
READY_TIMEOUT = 120.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What ends a server well."""
ACTOR_CLOSE_TIMEOUT = 30.0


class _Stopped(Exception):
    """A signal came while the server was starting."""


def serve_until_stopped(settings: Settings, *, on_ready: Callable[[str], None]) -> None:
    """Serve; call `on_ready` with the address once every route answers; return when SIGINT or SIGTERM came and all
    is drained and stopped. One that comes while it starts is heeded at the next step of that."""
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    logs.rotate(settings)
    logs.configure(settings)

    def go_on() -> None:
        if stop.is_set():
            raise _Stopped

    with contextlib.suppress(_Stopped), running(settings, go_on=go_on) as url:
        on_ready(url)
        stop.wait()
        logger.info("draining")


@contextlib.contextmanager
def running(settings: Settings, *, go_on: Callable[[], None] = lambda: None) -> Iterator[str]:
    """A running server; yields its address, for example `http://127.0.0.1:8000`. What `go_on`, called between the
    steps of starting, raises ends it."""
    settings = settings.model_copy(update={"port": settings.port or _free_port(settings.host)})
    settings.workspace.mkdir(parents=True, exist_ok=True)
    with _ray(settings):
        datastore = models = jobs = None
        try:
            go_on()
            datastore = start_datastore(settings)
            models = start_models(settings, datastore)
            described = models.describe.remote()
            jobs = start_jobs(settings, datastore, models)
            go_on()
            _deploy(settings, datastore, models, jobs)
            # A wrong app or an unreadable folder is told here, before anything answers.
            _told(described)
            yield _wait_until_answering(settings, go_on)
        finally:
            serve.shutdown()
            if jobs is not None:
                # With it go the runs under way; their records say RUNNING, so the next start goes on with them.
                ray.kill(jobs)
            if datastore is not None:
                _close(datastore)
            for actor in (models, datastore):
                if actor is not None:
                    ray.kill(actor)


def _deploy(settings: Settings, datastore: Any, models: Any, jobs: Any) -> None:
    """Start Serve and let it start the gateway and the replicas; until these run, it answers 404."""
    serve.start(
        http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    inference = inference_deployment(settings).bind(settings, datastore, models)
    gateway = gateway_deployment(settings, datastore, models, jobs).bind(inference)
    serve.run_many([serve.RunTarget(gateway, name=APPLICATION, route_prefix="/")], wait_for_applications_running=False)


def _wait_until_answering(settings: Settings, go_on: Callable[[], None]) -> str:
    """The server's address, once all replicas run and `GET /info/` answers; 401 counts: keys are asked for."""
    deadline = time.monotonic() + READY_TIMEOUT
    while (status := serve.status().applications[APPLICATION]).status != "RUNNING":
        go_on()
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {status.status}: {status.message}")
        time.sleep(0.1)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{shown}:{settings.port}"
    while True:
        go_on()
        try:
            with urllib.request.urlopen(url + Route.INFO, timeout=10):
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


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    """An embedded Ray node for this server alone, or a connection to the cluster that `ray_address` names."""
    # Unix sockets must have short paths, so Ray's session lies in the system's temporary folder.
    folder = Path(tempfile.gettempdir()) / f"rayapp-{secrets.token_hex(4)}"
    for name, value in _environment(settings, folder).items():
        os.environ.setdefault(name, value)
    common = {"namespace": NAMESPACE, "logging_level": "error", "log_to_driver": False}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def init(**options: Any) -> None:
        # In the main thread Ray would handle SIGTERM while it starts, and leave half of itself behind.
        starter.submit(ray.init, **common, **options).result()
        for number, handler in handlers.items():  # below Python, Ray has taken them in any thread
            signal.signal(number, handler)

    # The thread lives on, since Ray's processes die with the one that started them.
    with ThreadPoolExecutor(1, thread_name_prefix="ray") as starter:
        if settings.ray_address is not None:
            init(address=settings.ray_address)
            try:
                yield
            finally:
                ray.shutdown()
            return
        try:
            init(
                address="local",
                num_cpus=settings.num_cpus or max(LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                _temp_dir=str(folder),
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """What Ray's processes read from the environment."""
    names = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Every turn of the controller takes processor time from a click that is being answered.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    }
    if not settings.dashboard:
        names["RAY_enable_metrics_collection"] = "0"
    if settings.auth == "none":
        return names
    proxy = folder / "haproxy"
    return {
        **names,
        # HAProxy is far cheaper per request, but binds replicas to all interfaces: only behind keys.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Clients that are answered need no half minute to go elsewhere: there is one server.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Two servers on one machine must not share files and ports.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port("127.0.0.1")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port("127.0.0.1")),
    }


def _told(reference: Any) -> Any:
    """What the actor answers; an error of `rayapp.errors`, also one raised while it was made, arrives as itself."""
    try:
        return ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.ActorDiedError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RayappError):
            raise cause from None
        raise


def _close(datastore: Any) -> None:
    """Let the datastore write what is due. What was acknowledged is durable already."""
    try:
        ray.get(datastore.close.remote(), timeout=ACTOR_CLOSE_TIMEOUT)
    except ray.exceptions.RayError:
        logger.exception("the datastore did not close by itself; the next start repairs what is due")


def _free_port(host: str) -> int:
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
