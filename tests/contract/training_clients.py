"""Clients of trainings, for any server of the app `tests/apps/threshold` whose images are labelled."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.contract.command_line import rayapp
from tests.waiting import until


def refusal_is_told(url: str, folder: Path) -> None:
    """The command line lists, follows and tells a training that the trainer refuses, and what the server refuses."""
    done = rayapp("train", "bright", "--set", "fault=refuse", "--server", url, cwd=folder)
    assert done.returncode == 1
    assert "this cannot be trained with" in done.stderr
    shown = rayapp("jobs", "--server", url, cwd=folder)
    assert "ERROR" in shown.stdout
    followed = rayapp("jobs", done.stdout.strip(), "--server", url, cwd=folder)
    assert followed.returncode == 1
    assert "this cannot be trained with" in followed.stderr
    for words in (("train", "nothing"), ("train", "bright", "--set", "x"), ("jobs", "nothing")):
        done = rayapp(*words, "--server", url, cwd=folder)
        assert (done.returncode in (1, 2), done.stdout, len(done.stderr.splitlines())) == (True, "", 1), done.stderr


def slicer_trains(url: str) -> None:
    """MONAI Label's client, which 3D Slicer's module has too, starts a training, watches it and stops it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the module cgi, which it imports
        monailabel = pytest.importorskip("monailabel.client.client")
    slicer = monailabel.MONAILabelClient(url, client_id="slicer")
    assert slicer.train_status(check_if_running=True) is False
    config = slicer.info()["trainers"]["bright"]["config"]
    started = slicer.train_start("bright", {**config, "pause": 0.1, "max_epochs": 500})
    assert started["status"] == "SUBMITTED"
    until(lambda: slicer.train_status(check_if_running=True))
    assert slicer.train_status()["id"] == started["id"]
    with pytest.raises(monailabel.MONAILabelClientException):
        slicer.train_start("shiny", {})
    stopped = slicer.train_stop()
    assert (stopped["id"], stopped["status"]) == (started["id"], "STOPPED")
    assert stopped["details"][-1]
    assert slicer.train_stop() is None
    assert slicer.train_status(check_if_running=True) is False
