"""The server under test: `rayapp start` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from rayapp.client import Client
from rayapp.protocol import Role
from rayapp.users import UserStore


class server:  # noqa: N801 - reads as a verb
    """Context manager that starts a server and yields its address.

    Args:
        folder: Contains the studies in `studies`; the server's workspace is created in `workspace`.
        flags: Further flags of `rayapp start`.
        keys: Ask for tokens, as servers that others reach do: requests then go through HAProxy and gRPC.

    Attributes:
        token: Of a user who may do everything, if it asks for tokens.
    """

    def __init__(self, folder: Path, *flags: str, keys: bool = False) -> None:
        self.token = UserStore.of(folder / "workspace").add("bench", Role.ADMIN) if keys else None
        flags = (*flags, "--auth", "token") if keys else flags
        command = [str(Path(sys.executable).with_name("rayapp")), "start", "--studies", str(folder / "studies")]
        command += ["--workspace", str(folder / "workspace"), "--port", "0", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "RAYAPP_DASHBOARD": "false"},
        )

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit("the server did not start; run the command by hand to see why")
        self.url = line.removeprefix("ready ").strip()
        return self.url

    def client(self, client_id: str | None = None) -> Client:
        """Connect to it as a user who may do everything."""
        return Client(self.url, token=self.token, client_id=client_id)

    def cpu_seconds(self) -> float:
        """Processor time, user and system, of all the server's processes so far."""
        first = psutil.Process(self.process.pid)
        total = 0.0
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
