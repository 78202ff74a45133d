"""A server whose Ray loses a process of its own: it ends by itself, says why, and the next one has every label."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from rayapp.client import Client
from tests.conftest import STOP_TIMEOUT, started
from tests.waiting import until


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [("raylet", False), ("gcs_server", False), ("raylet", True)])
def test_a_server_that_lost_its_ray_ends_and_the_next_one_has_what_was_acknowledged(
    tmp_path: Path, name: str, keys: bool
):
    with started(tmp_path, keys=keys) as server:
        with Client(server.url, token=server.token) as client:
            label = client.infer("segmentation", "torso_0", to=tmp_path / "result.nii.gz").path
            client.save_label("torso_0", label, tag="final")
        next(child for child in psutil.Process(server.process.pid).children() if child.name() == name).kill()
        assert server.process.wait(STOP_TIMEOUT) == 1
        assert "start it again" in (tmp_path / "stderr").read_text()
        until(lambda: server.survivors() == [], within=STOP_TIMEOUT, every=0.2)
    with started(tmp_path, keys=keys) as again, Client(again.url, token=again.token) as client:
        kept = client.download_label("torso_0", tmp_path / "kept.nii.gz", tag="final")
        assert kept.read_bytes() == label.read_bytes()
