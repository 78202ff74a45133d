"""Node: the Ray that a server lives on, a node of its own or a cluster that it joins.

A node of its own is watched: without its raylet or its control service (the system kills one when memory runs out)
Ray's other processes neither end nor answer, so the server must end instead of hanging half dead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray

from actors import NAMESPACE
from rayapp.config import Settings

LOGICAL_CPUS = 4
"""The least logical CPUs of an embedded node: serving finds a place beside background work on a small machine."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What ends a server well."""
VITAL = ("raylet", "gcs_server")
"""Processes without which a node is lost."""
MARK = "RAYAPP_NODE"
"""In the environment of every process of one node."""


class Node:
    """Ray as this server has it. `vital` are its own processes that nothing goes on without: none of a cluster's."""

    def __init__(self, vital: Sequence[psutil.Process]) -> None:
        self._vital = vital

    @property
    def lost(self) -> bool:
        """True once one of them ended."""
        return not all(_runs(process) for process in self._vital)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[Node]:
    """An embedded node for this server alone, or a connection to the cluster that `ray_address` names."""
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
                yield Node(())
            finally:
                ray.shutdown()
            return
        os.environ[MARK], node = folder.name, Node(())
        try:
            init(
                address="local",
                num_cpus=settings.num_cpus or max(LOGICAL_CPUS, os.cpu_count() or 1),
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                _temp_dir=str(folder),
            )
            node = Node([child for child in psutil.Process().children() if child.name() in VITAL])
            yield node
        finally:
            if node.lost:
                _kill(folder.name)
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _kill(mark: str) -> None:
    """Kill what is left of a lost node: nobody else can end it any more."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """What Ray's processes read from the environment."""
    names = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Every turn of the controller takes processor time from a click that is being answered.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # On a busy machine a process may need longer than Ray's five seconds to start, and would be killed for it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
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
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("127.0.0.1")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("127.0.0.1")),
    }


def free_port(host: str) -> int:
    """A port of the host that nobody listens on just now."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
