"""kill -9 of the server's own processes under a client: it costs one slow answer, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

from rayapp.client import Client
from tests.conftest import MARK, SHAPE, Running, started

CLICK = {"liver": [[20, 20, 20]], "label": "liver"}


def process_of(server: Running, name: str) -> psutil.Process:
    """The server's process whose title, which Ray writes, has this in it."""
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and name in title and process.environ().get(MARK) == server.mark:
                return process
        except psutil.Error:
            continue
    pytest.fail(f"no process {name!r}")


WAYS = [pytest.param(False, id="without keys", marks=pytest.mark.slow), pytest.param(True, id="with keys")]
"""As a server is used, and at length also as a demo is."""


@pytest.fixture(scope="module", params=WAYS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of this module's own. With keys its requests go through HAProxy and gRPC, whose failures are others."""
    with started(tmp_path_factory.mktemp("server"), keys=request.param) as running:
        yield running


@pytest.fixture
def client(server: Running):
    with Client(server.url, token=server.token, client_id="chaos") as client:
        yield client


def test_a_replica_killed_between_two_clicks_costs_one_slow_click(server: Running, client: Client):
    before = client.infer("deepedit", "torso_1", params=CLICK).labels()
    replica = process_of(server, ":inference")
    os.kill(replica.pid, signal.SIGKILL)
    after = client.infer("deepedit", "torso_1", params=CLICK).labels()
    assert replica.wait(10) is not None or not replica.is_running()
    np.testing.assert_array_equal(after, before)


def test_an_interaction_goes_on_where_it_was_after_its_replica_and_the_datastore_were_killed(
    server: Running, client: Client
):
    work = client.open_interaction("deepedit", "torso_1")
    first = work.prompt({"liver": [[20, 20, 20]]})
    second = work.prompt({"background": [[5, 6, 7]]})
    for name in (":inference", "DatastoreActor"):
        os.kill(process_of(server, name).pid, signal.SIGKILL)
    np.testing.assert_array_equal(work.undo(), first)
    np.testing.assert_array_equal(work.redo(), second)
    assert [event["kind"] for event in work.state()["events"]] == ["prompt", "prompt", "undo", "redo"]


def test_a_killed_datastore_loses_no_acknowledged_label(server: Running, client: Client, tmp_path: Path):
    image = nibabel.load(server.studies / "torso_2.nii.gz")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 5, 7] = 1
    file = tmp_path / "mask.nii.gz"
    nibabel.Nifti1Image(mask, image.affine).to_filename(file)
    client.save_label("torso_2", file, tag="chaos", params={"note": "kept"})
    os.kill(process_of(server, "DatastoreActor").pid, signal.SIGKILL)
    assert client.label_info("torso_2", "chaos")["note"] == "kept"
    fetched = client.download_label("torso_2", tmp_path / "fetched.nii.gz", tag="chaos")
    np.testing.assert_array_equal(np.asarray(nibabel.load(fetched).dataobj), mask)
