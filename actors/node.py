"""The Ray node of a server: an embedded one, or a connection to an existing cluster.

An embedded node is watched. Without its raylet or its control service, one of which the kernel kills when memory runs
out, Ray's other processes neither end nor answer: the server must then end instead of hanging.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import psutil  # type: ignore[import-untyped]
import ray
from ray._private import ray_constants

from actors import NAMESPACE
from actors.haproxy import Frontend, installed, narrowed
from rayapp.config import Settings
from rayapp.planner.shares import IDLE_CPUS
from rayapp.runtime import host

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a server gracefully."""
VITAL = ("raylet", "gcs_server")
"""Processes without which a node does not work."""
PATIENCE = 30
"""Seconds in which a client must send the next piece of its request, with keys."""
ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable by which a node of Ray's opens ports at 127.0.0.1 only; the name is older than the use."""
INSIDE = "127.0.0.1"
"""Address of everything of an embedded node but the port for clients."""
QUIET = range(20_000, 30_000)
"""Ports below those that Linux gives out by itself, which Ray's processes take, and below those of Serve's replicas."""
MARK = "RAYAPP_NODE"
"""Environment variable that marks every process of one node."""


class Node:
    """A running Ray node.

    Args:
        vital: processes without which it does not work; empty for an existing cluster, which is not watched.
    """

    def __init__(self, vital: Sequence[psutil.Process]) -> None:
        self._vital = vital

    @property
    def lost(self) -> bool:
        """True once a vital process has ended."""
        return not all(_runs(process) for process in self._vital)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[Node]:
    """Start an embedded node, or connect to the cluster `ray_address`; undone when the block ends."""
    # Unix sockets need short paths, so Ray's session is in the system's temporary folder.
    folder = Path(tempfile.gettempdir()) / f"rayapp-{secrets.token_hex(4)}"
    common = {"namespace": NAMESPACE, "logging_level": "error", "log_to_driver": False}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def init(**options: Any) -> None:
        # In the main thread Ray would handle SIGTERM while it starts, and leave some of its processes behind.
        starter.submit(ray.init, **common, **options).result()
        for number, handler in handlers.items():  # Ray replaces the C-level handlers from any thread
            signal.signal(number, handler)

    # The thread is kept alive, since Ray's processes die with the thread that started them.
    with ThreadPoolExecutor(1, thread_name_prefix="ray") as starter:
        if settings.ray_address is not None:
            close_token()
            init(address=settings.ray_address)
            try:
                yield Node(())
            finally:
                ray.shutdown()
            return
        os.environ[MARK], node = folder.name, Node(())
        folder.mkdir(mode=0o700)
        for name, value in _environment(settings).items():
            os.environ.setdefault(name, value)
        os.environ.update(_places(settings, folder))
        make_token()
        clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            init(
                address="local",
                num_cpus=settings.num_cpus or host.cores() + int(IDLE_CPUS),
                include_dashboard=settings.dashboard,
                dashboard_host=INSIDE,
                _temp_dir=str(folder / "ray"),  # Ray opens this one to all users, but not what it lies in
            )
            node = Node([child for child in psutil.Process().children() if child.name() in VITAL])
            yield node
        finally:
            if node.lost:
                _kill(folder.name)
            ray.shutdown()
            ray_constants.ENABLE_RAY_CLUSTER = clusters
            shutil.rmtree(folder, ignore_errors=True)


def _kill(mark: str) -> None:
    """Kill the remaining processes of a lost node, which nothing else would end."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()


def _environment(settings: Settings) -> dict[str, str]:
    """Environment variables for Ray's processes; those of the user's own are left as they are."""
    names = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Every iteration of the controller takes processor time from a click that is being answered.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # On a busy machine a process may take longer to start than the five seconds after which Ray kills it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # A proxy that died is noticed after three of these, 30 s by default.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A replica that hangs ends at once: it would be given the time of the longest answer.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Who sends half a request is not waited for.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.connections.watched",
        # A second replica is needed when people wait, not half a minute later.
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    }
    if not settings.dashboard:
        names["RAY_enable_metrics_collection"] = "0"
    if settings.auth == "none":
        return names
    return {
        **names,
        # HAProxy is far cheaper per request, but has replicas open ports to which Ray's token is the key.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Clients need no half minute to move to another server: there is one only.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Half-sent requests give their connection back after this, not after an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(PATIENCE),
    }


def _places(settings: Settings, folder: Path) -> dict[str, str]:
    """Environment variables for files and ports of a server's own: there may be others on the machine."""
    common = {ALONE: "0", "RAYAPP_MAX_CONNECTIONS": str(settings.max_connections)}
    if settings.auth == "none":
        return common
    proxy = folder / "h"  # paths of sockets have room for 97 bytes
    frontend = Frontend(
        host=settings.host, certificate=_certificate(settings, folder), max_connections=settings.max_connections
    )
    return {
        **common,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(narrowed(folder, installed(), frontend)),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m.sock"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("127.0.0.1")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("127.0.0.1")),
    }


def _certificate(settings: Settings, folder: Path) -> Path | None:
    """The server's certificate and key in one file, as HAProxy takes them; None without TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    both = folder / "tls.pem"
    with _private(both) as file:
        file.write(settings.tls_cert.read_text().rstrip() + "\n" + settings.tls_key.read_text())
    return both


def token_file() -> Path:
    """The file from which Ray takes its token: who has it can run code as the user of the node."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def make_token() -> None:
    """Make Ray's token, unless there is one, in a file that only this user can read: Ray would make it for all."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        token_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), _private(token_file()) as file:
            file.write(secrets.token_hex(32))
        close_token()


def close_token() -> None:
    """Let only this user read Ray's token, if it is this user's; the file of another one stays as it is."""
    with contextlib.suppress(OSError):
        token_file().chmod(0o600)


def _private(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def free_port(host: str) -> int:
    """A port of the host that is free at the moment, and that the system gives to nobody who asks for any."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    for port in (*random.sample(QUIET, 20), 0):
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, f"no port of {host} is free")
