"""`rayapp infer`, `next`, `users` and the server's own end, against running servers."""

from __future__ import annotations

import signal
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from rayapp import errors
from rayapp.client import Client
from tests.certificates import self_signed
from tests.conftest import Running, started
from tests.contract.command_line import rayapp
from tests.contract.test_monailabel_client import same_grid


def test_infer_writes_the_mask_shows_it_and_draws_it(server: Running, tmp_path: Path):
    words = ("infer", "segmentation", "torso_0", "--server", server.url, "--picture", "it.png")
    done = rayapp(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "torso_0.segmentation.nii.gz")))
    assert same_grid(tmp_path / "torso_0.segmentation.nii.gz", server.studies / "torso_0.nii.gz")
    assert f" {np.count_nonzero(mask == 1)} " in next(line for line in done.stdout.splitlines() if "liver" in line)
    assert done.stdout.splitlines()[-1] == "torso_0.segmentation.nii.gz"
    assert Image.open(tmp_path / "it.png").width > 500


def test_infer_takes_a_file_clicks_and_an_output(server: Running, tmp_path: Path):
    source = server.studies / "torso_1.nii.gz"
    words = ("infer", "deepedit", source, "--server", server.url, "--click", "liver=30,25,20", "--output", "m.nrrd")
    done = rayapp(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same_grid(tmp_path / "m.nrrd", source)


def test_next_prints_an_id_and_can_fetch_the_image(server: Running, tmp_path: Path):
    with Client(server.url) as client:
        images = client.document()["objects"]
    done = rayapp("next", "random", "--server", server.url, cwd=tmp_path)
    assert done.stdout.strip() in images
    done = rayapp("next", "random", "--server", server.url, "--download", "in", cwd=tmp_path)
    file = tmp_path / done.stdout.strip()
    assert file.read_bytes() == (server.studies / file.name).read_bytes()


def test_replay_prints_dice_against_the_reference_after_every_click(server: Running, tmp_path: Path):
    with Client(server.url) as client:
        work = client.open_interaction("deepedit", "torso_3")
        work.prompt({"liver": [[30, 25, 20]]})
        work.prompt({"background": [[2, 3, 1]]})
        client.infer("deepedit", "torso_3", params={"liver": [[30, 25, 20]], "background": [[2, 3, 1]]}, to=tmp_path)
    (reference,) = tmp_path.iterdir()
    words = ("replay", "torso_3", "--server", server.url, "--interaction", work.id)
    done = rayapp(*words, "--reference", reference, "--version", "v1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["none", "liver 30,25,20", "background 2,3,1"]
    assert rows[-1][-1] == "1.000", "the last mask is the reference"
    done = rayapp("replay", "torso_2", "--server", server.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "torso_2" in done.stderr


def test_what_the_server_refuses_is_told_in_one_line(server: Running, tmp_path: Path):
    for words in (("infer", "nothing", "torso_0"), ("infer", "segmentation", "nothing"), ("next", "nothing")):
        done = rayapp(*words, "--server", server.url, cwd=tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert "'nothing'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_says_that_it_is_ready_and_counts_what_it_does(server: Running):
    assert requests.get(f"{server.url}/readyz", timeout=20).json()["ready"] is True
    assert (
        'rayapp_requests_total{method="GET",route="/readyz"' in requests.get(f"{server.url}/metrics", timeout=20).text
    )


def test_without_keys_no_port_of_any_process_is_open_to_other_machines(server: Running):
    assert server.exposed() == set()


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_leaves_nothing(tmp_path: Path):
    with started(tmp_path) as running:
        assert running.stop(signal.SIGINT) == 0
    assert running.lines == [f"ready {running.url}\n"]
    assert running.survivors() == []


@pytest.mark.slow
def test_with_keys_only_their_holders_come_in_as_far_as_their_role_reaches(tmp_path: Path):
    certificate, key = self_signed(tmp_path)
    # As SSL_CERT_FILE does for a program that is started with it.
    aiohttp.connector._SSL_CONTEXT_VERIFIED.load_verify_locations(certificate)
    secured = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with started(tmp_path, "--auth", "token", "--host", "0.0.0.0", *secured) as running:
        assert running.url.startswith("https://0.0.0.0:")
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        at = ("--studies", running.studies, "--workspace", running.workspace)
        token = rayapp("users", "add", "anna", "--role", "user", *at, cwd=tmp_path).stdout.strip()
        assert "anna" in rayapp("users", "list", *at, cwd=tmp_path).stdout
        with Client(running.url) as stranger, pytest.raises(errors.NotSignedIn):
            stranger.info()
        with Client(running.url, token=token) as anna:
            assert anna.whoami()["username"] == "anna"
            assert anna.info()["models"]
            assert running.exposed() == {("haproxy", urlsplit(running.url).port)}
            with pytest.raises(errors.NotAllowed):
                anna.delete_image("torso_0")
            assert rayapp("users", "revoke", "anna", *at, cwd=tmp_path).returncode == 0
            with pytest.raises(errors.NotSignedIn):
                anna.info()
        assert running.stop() == 0
    assert running.survivors() == []
