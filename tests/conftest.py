"""A real server for the tests that need one: `rayapp start`, once for all of them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import nibabel
import psutil
import pytest

from rayapp.imaging.phantom import phantom
from rayapp.protocol import Role
from rayapp.users import UserStore
from tests.distribution import GroupScheduling, rank_of
from tests.orthanc import Orthanc, orthanc
from tests.real_data import lacked

START_TIMEOUT = 400
STOP_TIMEOUT = 120
SHAPE = (64, 52, 40)
MARK = "RAYAPP_TEST_SERVER"
"""In the environment of every process of one server."""


@dataclass
class Running:
    """A server: its address, its folder of images and what it printed."""

    process: subprocess.Popen[str]
    studies: Path
    workspace: Path
    mark: str
    url: str = ""
    token: str | None = None
    """Of an annotator, if it was started with one."""
    lines: list[str] = field(default_factory=list)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the process that was started, wait for its end and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT)

    def survivors(self) -> list[str]:
        """Processes of this server that run still."""
        return [" ".join(process.cmdline())[:120] for process in psutil.process_iter() if _marked(process, self.mark)]

    def exposed(self) -> set[tuple[str, int]]:
        """Process name and port of every socket of this server that other machines can reach."""
        return {
            (process.name(), each.laddr.port)
            for process in psutil.process_iter()
            if _marked(process, self.mark)
            for each in process.net_connections("inet")
            if each.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and each.laddr
            if not ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback
        }


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def make_studies(folder: Path, count: int) -> Path:
    """Small torsos, asymmetric and oblique, `torso_0.nii.gz` and so on; as they are, if they were made before."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    for number in range(count):
        volume, _ = phantom(5_000_000 + number, shape=SHAPE)
        nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(folder / f"torso_{number}.nii.gz")
    return folder


@contextmanager
def started(folder: Path, *flags: str, patience: float = START_TIMEOUT, keys: bool = False) -> Iterator[Running]:
    """`rayapp start` on small studies in `folder`, again on those there; yields once it is ready, which may take
    `patience` seconds, and stops it if nobody did. With keys it asks for a token, which `Running` then has."""
    studies, workspace, mark = make_studies(folder / "studies", 4), folder / "workspace", secrets.token_hex(8)
    command = [Path(sys.executable).with_name("rayapp"), "start", "--studies", studies, "--workspace", workspace]
    token = UserStore.of(workspace).add(f"ann-{mark}", Role.ADMIN) if keys else None
    flags = (*flags, "--auth", "token") if keys else flags
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "RAYAPP_DASHBOARD": "false"}
    with (folder / "stderr").open("a") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", *flags], stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder
        )
    running, ready = Running(process, studies, workspace, mark, token=token), threading.Event()
    reading = threading.Thread(target=_read, args=(running, ready), daemon=True)
    reading.start()
    try:
        if not ready.wait(patience) or not running.lines:
            pytest.fail(f"the server did not start: {(folder / 'stderr').read_text()[-3000:]}")
        running.url = running.lines[0].removeprefix("ready ").strip()
        yield running
    finally:
        try:
            running.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        reading.join(5)


def _read(running: Running, ready: threading.Event) -> None:
    """Collect the server's stdout; ready at its first line or its end."""
    assert running.process.stdout is not None
    for line in running.process.stdout:
        running.lines.append(line)
        ready.set()
    ready.set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests as `tests.distribution` says."""
    items.sort(key=lambda item: rank_of(item.path.relative_to(Path(__file__).parent).as_posix()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupScheduling | None:
    """Distribute the tests as `tests.distribution` says, where each file's are to stay together."""
    return GroupScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end of a run which real data it did without."""
    if said := lacked(terminalreporter.getreports("skipped")):
        terminalreporter.write_line(said, yellow=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the whole run; that it stops cleanly is part of every run."""
    with started(tmp_path_factory.mktemp("server")) as running:
        yield running
        assert running.stop(signal.SIGTERM) == 0
    assert running.lines == [f"ready {running.url}\n"]
    assert running.survivors() == []


@pytest.fixture(scope="session")
def running_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One DICOMweb archive for the whole run."""
    with orthanc(tmp_path_factory.mktemp("archive") / "orthanc") as running:
        yield running


@pytest.fixture
def archive(running_archive: Orthanc) -> Orthanc:
    """The archive, empty; mark the test `needs_orthanc`."""
    running_archive.empty()
    return running_archive
