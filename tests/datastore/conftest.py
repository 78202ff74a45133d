"""A small studies folder, and the store on it: as the plain object, and as the Ray actor that wraps it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import Open
from tests.waiting import PATIENCE_S


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("ct_a.nii.gz", "ct_b.nii.gz", "mr_c.nrrd"):
        (folder / name).write_bytes(b"voxels of " + name.encode())
    return folder


@pytest.fixture
def open_store() -> Iterator[Open]:
    """Opens a store that is closed after the test, with short waits."""
    opened = []

    def make(studies: Path, **options: Any) -> LocalDatastore:
        store = LocalDatastore(studies, **{"watch": False, "settle": 0.02, **options})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def plain(studies: Path, open_store: Open) -> LocalDatastore:
    return open_store(studies)


@pytest.fixture(scope="package")
def ray_node() -> Iterator[None]:
    """A Ray node in this process, once for all tests of the datastore."""
    import ray

    # Sockets live under the temporary folder, and their paths may have 107 bytes only.
    folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")
    ray.init(
        num_cpus=2, include_dashboard=False, namespace="rayapp-datastore-tests", _temp_dir=folder, log_to_driver=False
    )
    yield
    ray.shutdown()
    _, alive = psutil.wait_procs(_processes(folder), timeout=PATIENCE_S)
    assert not alive
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: str) -> list[psutil.Process]:
    """Those of the Ray node: they all carry its folder on their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if folder in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(params=["object", "actor"])
def store(request: pytest.FixtureRequest, studies: Path, tmp_path: Path) -> Iterator[Any]:
    if request.param == "object":
        yield request.getfixturevalue("plain")
        return
    request.getfixturevalue("ray_node")
    import ray

    from actors.datastore import remote_datastore, start_datastore
    from rayapp.config import Settings

    handle = start_datastore(Settings(studies=studies, workspace=tmp_path / "workspace"))
    remote = remote_datastore(handle)
    remote.status()
    yield remote
    remote.close()
    ray.kill(handle)
