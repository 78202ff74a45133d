"""Label, train, watch, click on the better model, roll back: through HTTP and the command line alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp import errors
from rayapp.client import Client, JobKind
from rayapp.imaging.phantom import phantom
from tests.chaos.test_replica_kill import process_of
from tests.conftest import SHAPE, Running, started
from tests.contract.command_line import rayapp
from tests.contract.training_clients import refusal_is_told, slicer_trains
from tests.jobs.plain import APP, write_label
from tests.waiting import until


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("training"), "--app", str(APP), "--models", "bright,shiny") as running:
        yield running
    assert running.survivors() == []


def test_the_model_gets_better_while_annotators_work(trainer: Running, tmp_path: Path):
    with Client(trainer.url) as client:
        with pytest.raises(errors.BadRequest, match="final label"):
            client.start_job(JobKind.TRAIN, "bright")
        assert client.infer_box("bright", "torso_0").params["at"] == 60.0
        for number in range(3):
            file = write_label(trainer.studies, f"torso_{number}", tmp_path / f"{number}.nii.gz")
            client.save_label(f"torso_{number}", file)

        words = ("train", "bright", "--set", "max_epochs=4", "--set", "pause=0.05", "--server", trainer.url)
        done = rayapp(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "published version v2, promoted to production" in done.stderr
        assert "goes" not in done.stderr
        job = done.stdout.strip()
        found = client.job(job)
        assert (found["status"], found["request"]["max_epochs"]) == ("DONE", 4)
        assert client.download_job_file(job, "curves.png", tmp_path).read_bytes().startswith(b"\x89PNG")
        assert not list((trainer.workspace / "checkpoints").iterdir())

        info = client.info()
        assert info["train_stats"]["bright"]["best_metric"] == found["result"]["metric"]
        assert "total_time" in info["train_stats"]["bright"]
        assert info["models"]["bright"]["version"] == "v2"
        until(lambda: client.infer_box("bright", "torso_0").params["model_version"] == "v2")
        assert client.infer_box("bright", "torso_0").params["at"] > 60.0

        shown = rayapp("models", "list", "--server", trainer.url, cwd=tmp_path).stdout
        assert re.findall(r"\b(v\d+)( \*)?", shown) == [("v1", ""), ("v2", " *"), ("v1", "")]  # and its parent
        assert rayapp("models", "rollback", "bright", "--server", trainer.url, cwd=tmp_path).stdout == "v1\n"
        until(lambda: client.infer_box("bright", "torso_0").params["model_version"] == "v1")
        assert rayapp("models", "promote", "bright", "v2", "--server", trainer.url, cwd=tmp_path).stdout == "v2\n"
        assert client.models()["bright"]["production"] == "v2"


@pytest.mark.slow
def test_jobs_are_listed_followed_and_refused_in_one_line(trainer: Running, tmp_path: Path):
    refusal_is_told(trainer.url, tmp_path)


@pytest.mark.slow
def test_slicers_client_starts_watches_and_stops_a_training(trainer: Running):
    slicer_trains(trainer.url)


def test_a_training_can_be_left_to_itself_and_cancelled(trainer: Running, tmp_path: Path):
    words = ("train", "bright", "--detach", "--set", "pause=0.1", "--set", "max_epochs=500", "--server", trainer.url)
    job = rayapp(*words, cwd=tmp_path).stdout.strip()
    with Client(trainer.url) as client:
        events = client.follow(job)
        assert any((event["progress"] or {}).get("iteration", 0) > 2 for event in events)
        assert client.running(JobKind.TRAIN)
        threads = Path(f"/proc/{process_of(trainer, 'RayTrainWorker').pid}/task").iterdir()
        assert os.SCHED_IDLE in {os.sched_getscheduler(int(thread.name)) for thread in threads}, (
            "it gives way to clicks"
        )
        with pytest.raises(errors.AlreadyRunning):
            client.start_job(JobKind.TRAIN, "shiny")
        stopped = client.stop_job(JobKind.TRAIN)
        assert stopped is not None
        assert (stopped["id"], stopped["status"]) == (job, "STOPPED")
        assert not client.running(JobKind.TRAIN)
        assert not [path for path in trainer.workspace.rglob("*") if job in path.name]
        json.dumps(client.jobs())


@pytest.mark.slow
def test_the_models_that_ship_learn_from_labels_saved_over_http(tmp_path: Path):
    with started(tmp_path) as server, Client(server.url) as client:
        for number in range(4):
            volume, truth = phantom(5_000_000 + number, shape=SHAPE)
            file = tmp_path / f"{number}.nii.gz"
            nibabel.Nifti1Image(truth.array.astype(np.uint8), volume.affine).to_filename(file)
            client.save_label(f"torso_{number}", file)
        for model in ("segmentation", "deepedit"):
            *_, job = client.follow(client.start_job(JobKind.TRAIN, model, {"max_epochs": 1})["id"])
            assert job["status"] == "DONE", job
            print(job["details"][-1])
            assert {"curves.png", "worst-1.png", "report.html", "cases.csv"} <= set(client.job(job["id"])["files"])
            found = client.models()[model]
            assert [version["version"] for version in found["versions"]] == ["v1", "v2"]
            promoted = job["result"]["metric"] >= job["result"]["baseline"]
            assert found["production"] == ("v2" if promoted else "v1")
            client.promote(model, "v2")
            while client.infer_box(model, "torso_0").params["model_version"] == "v1":
                pass
            assert client.rollback(model) == "v1"
            assert client.info()["train_stats"][model]["best_metric"] > 0
