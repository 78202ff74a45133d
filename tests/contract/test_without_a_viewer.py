"""An annotator without a viewer goes the whole way on the command line, and programs read it as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rayapp.client import Client
from tests.conftest import Running
from tests.contract.command_line import rayapp


@pytest.fixture
def uploaded(server: Running, tmp_path: Path):
    shutil.copy(server.studies / "torso_0.nii.gz", tmp_path / "newcomer.nii.gz")
    done = rayapp("upload", "newcomer.nii.gz", "--server", server.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "newcomer\n"), done.stderr
    yield "newcomer"
    with Client(server.url) as client:
        client.delete_image("newcomer")


def test_an_image_is_uploaded_segmented_saved_and_found_again(server: Running, uploaded: str, tmp_path: Path):
    at = ("--server", server.url)
    again = rayapp("upload", "newcomer.nii.gz", *at, cwd=tmp_path)
    assert again.returncode == 2
    assert "--replace" in again.stderr
    done = rayapp("infer", "segmentation", uploaded, "--output", "mask.nii.gz", *at, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    save = ("save", uploaded, "mask.nii.gz", "--name", "1=liver", "--looked-for", "liver", *at)
    done = rayapp(*save, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "saved revision 1 of newcomer\n"), done.stderr
    refused = rayapp(*save, cwd=tmp_path)
    assert refused.returncode == 2
    assert "newcomer has a final label" in refused.stderr
    assert rayapp(*save, "--replace", cwd=tmp_path).stdout == "saved revision 2 of newcomer\n"
    listed = json.loads(rayapp("labels", "list", uploaded, "--json", *at, cwd=tmp_path).stdout)
    assert [one["number"] for one in listed] == [1, 2]
    assert listed[-1]["info"]["looked_for"] == ["liver"]
    assert listed[-1]["info"]["label_info"] == [{"name": "liver", "idx": 1}]
    images = json.loads(rayapp("images", "--json", *at, cwd=tmp_path).stdout)
    assert images[uploaded]["labels"] == ["final"]
    with Client(server.url) as client:
        client.delete_label(uploaded)
        assert client.label_revisions(uploaded)[-1]["number"] == 2


def test_a_server_is_described_in_words_and_as_json(server: Running, tmp_path: Path):
    at = ("--server", server.url)
    told = rayapp("info", *at, cwd=tmp_path).stdout
    assert "model      deepedit (deepedit)" in told
    assert "trainers   " in told
    described = json.loads(rayapp("info", "--json", *at, cwd=tmp_path).stdout)
    assert described["models"]["deepgrow_3d"]["type"] == "deepgrow"
    assert set(json.loads(rayapp("models", "list", "--json", *at, cwd=tmp_path).stdout)) >= {"segmentation"}
    assert "images added" in rayapp("logs", *at, cwd=tmp_path).stdout


def test_a_batch_is_started_listed_and_cancelled(server: Running, tmp_path: Path):
    at = ("--server", server.url)
    started = rayapp("batch", "segmentation", "--detach", "--enqueue", *at, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    job = started.stdout.strip()
    assert job in [one["id"] for one in json.loads(rayapp("jobs", "--json", *at, cwd=tmp_path).stdout)]
    ended = json.loads(rayapp("jobs", job, "--cancel", "--json", *at, cwd=tmp_path).stdout)
    assert ended["id"] == job
    assert rayapp("jobs", "--cancel", *at, cwd=tmp_path).returncode == 2
    with Client(server.url) as client:
        assert list(client.follow(job))[-1]["status"] in ("STOPPED", "DONE")
