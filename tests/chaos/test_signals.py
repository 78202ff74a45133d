"""A server that is told to stop while it starts: at whatever moment, it ends well and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MARK, Running, make_studies
from tests.waiting import until


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])
def test_a_signal_during_the_start_ends_it_with_status_0(tmp_path: Path, number: signal.Signals, seconds: float):
    # Unix sockets must have short paths, so this is not below tmp_path.
    temporary = Path("/tmp") / f"signal-{secrets.token_hex(4)}"
    temporary.mkdir()
    mark = secrets.token_hex(8)
    studies = make_studies(tmp_path / "studies", 1)
    env = {**os.environ, MARK: mark, "TMPDIR": str(temporary), "RAYAPP_DASHBOARD": "false"}
    command = [Path(sys.executable).with_name("rayapp"), "start", "--studies", studies, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workspace", tmp_path / "workspace"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    until(lambda: _heeds(process.pid, signal.SIGTERM))  # SIGINT is caught by every Python
    time.sleep(seconds)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors[-2000:]
    assert said == "" or said.startswith("ready ")
    assert Running(process, studies, tmp_path / "workspace", mark).survivors() == []
    assert [path.name for path in temporary.iterdir()] == []
    temporary.rmdir()


def _heeds(pid: int, number: signal.Signals) -> bool:
    """True once the process catches the signal: before, it has started nothing that could be left behind."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
