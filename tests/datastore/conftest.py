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

from rayapp.config import Settings
from rayapp.datastore import archive_sender
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.local import LocalDatastore
from tests.datastore.placed import CT, MR, US, Placed
from tests.datastore.saves import Open
from tests.front import PLAIN, front
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import write_series
from tests.orthanc import Orthanc
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

    handle = start_datastore(Settings(studies=studies, workspace=tmp_path / "workspace"))
    remote = remote_datastore(handle)
    remote.status()
    yield remote
    remote.close()
    ray.kill(handle)


@pytest.fixture
def placed(archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Placed]:
    """An archive with a CT, an MR and an ultrasound series; mark the test `needs_orthanc`."""
    monkeypatch.setattr(archive_sender, "RETRY_S", 0.1)
    for series, modality, affine in ((CT, "CT", "oblique"), (MR, "MR", "left-handed"), (US, "US", "straight")):
        files = write_series(
            tmp_path / series, voxels(), AFFINES[affine], series=series, study=f"{series}.9", modality=modality
        )
        archive.store(files)
    opened: list[DicomwebDatastore] = []
    with front(archive.root) as standing:

        def open_it(**fields: Any) -> DicomwebDatastore:
            known = {"timeout": 60.0, **fields.pop("dicomweb", {})}
            settings = Settings(
                studies=standing.url + "/dicom-web", workspace=tmp_path / "workspace", dicomweb=known, **fields
            )
            opened.append(DicomwebDatastore(settings, watch=False))
            return opened[-1]

        yield Placed(archive, standing, open_it, tmp_path)
        standing.way = PLAIN
        for store in opened:
            store.close()
