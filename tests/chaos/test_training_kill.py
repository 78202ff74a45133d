"""kill -9 of a training's processes, and of the server, mid-run: it goes on from its last checkpoint by itself.

The app's training is deterministic, so the last test compares a run with three faults to one without any.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayapp.client import Client, Job, JobKind
from tests.chaos.test_replica_kill import process_of
from tests.conftest import MARK, Running, started
from tests.jobs.plain import APP, write_label
from tests.waiting import until

FLAGS = ("--app", str(APP), "--models", "bright,shiny")
LONG = {"max_epochs": 400, "pause": 0.1}
RUN = ("TrainingActor", "TrainController", "RayTrainWorker", "PlacementGroupCleaner", "SynchronizationActor")
PATIENCE_S = 120


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("training"), *FLAGS) as running:
        label(running, tmp_path_factory.mktemp("labels"))
        yield running
    assert running.survivors() == []


@pytest.fixture
def client(trainer: Running) -> Iterator[Client]:
    with Client(trainer.url) as client:
        yield client
        client.stop_job(JobKind.TRAIN)


def label(server: Running, folder: Path) -> None:
    with Client(server.url) as client:
        for image in client.document()["objects"]:
            client.save_label(image, write_label(server.studies, image, folder / f"{image}.nii.gz"))


def reached(client: Client, job: str, state: Callable[[Job], bool]) -> Job:
    """The job once it is in a state that it has before its end."""

    def found() -> Job | None:
        now = client.job(job)
        assert state(now) or "end_ts" not in now, now
        return now if state(now) else None

    return until(found, within=PATIENCE_S, every=0.1)


def iteration(job: Job) -> int:
    return (job["progress"] or {}).get("iteration", 0)


def text(job: Job) -> str:
    return "\n".join(job.get("details", []))


def traced(server: Running, job: str) -> list[int]:
    """The iterations made, in order, over all lives of the run."""
    lines = (server.workspace / "runs" / job / "trace.txt").read_text().splitlines()
    return [int(line.split()[2]) for line in lines]


def checkpoints(server: Running, job: str) -> int:
    """Number of checkpoints that Ray Train has registered; it resumes from the last, and keeps two."""
    noted = server.workspace / "checkpoints" / job / "checkpoint_manager_snapshot.json"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or just being written
        return len(json.loads(noted.read_text())["checkpoint_results"])
    return 0


def begun(server: Running, client: Client, **params: Any) -> str:
    """A training that can go on from a checkpoint."""
    job = client.start_job(JobKind.TRAIN, "bright", {**LONG, **params})["id"]
    reached(client, job, lambda found: iteration(found) >= 12)
    until(lambda: checkpoints(server, job) >= 2, within=PATIENCE_S)
    return job


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController", "TrainingActor", "JobsActor"])
def test_a_killed_process_of_a_training_costs_no_more_than_since_its_last_checkpoint(
    trainer: Running, client: Client, victim: str
):
    job = begun(trainer, client)
    before = iteration(client.job(job))
    os.kill(process_of(trainer, victim).pid, signal.SIGKILL)
    found = reached(client, job, lambda found: "goes on from epoch" in text(found) and iteration(found) > before + 4)
    print(text(found))
    done = traced(trainer, job)
    (again,) = [at for at, (one, next_one) in enumerate(itertools.pairwise(done)) if next_one != one + 1]
    assert done[again + 1] > 0, "it began from the start"
    assert done[again] - done[again + 1] < 40, "it lost more than it had to"
    assert client.info()["models"]["bright"]


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_do_not_end_a_training(trainer: Running, client: Client):
    job = begun(trainer, client)
    for number in range(5):
        os.kill(process_of(trainer, "RayTrainWorker").pid, signal.SIGKILL)
        reached(client, job, lambda found: text(found).count("goes on from epoch") > number)  # noqa: B023
        at = iteration(client.job(job))
        reached(client, job, lambda found: iteration(found) > at + 8)  # noqa: B023
    assert "process died" in text(client.job(job)), "Ray Train makes three faults good, the jobs actor the rest"
    print(text(client.job(job)))


@pytest.mark.slow
def test_a_restart_of_the_server_in_the_middle_of_a_training(tmp_path: Path):
    with started(tmp_path, *FLAGS) as server:
        label(server, tmp_path)
        with Client(server.url) as client:
            job = begun(server, client)
            waiting = client.start_job(JobKind.TRAIN, "shiny", {"max_epochs": 1}, enqueue=True)["id"]
    assert server.survivors() == []
    last = traced(server, job)[-1]
    with started(tmp_path, *FLAGS) as server, Client(server.url) as client:
        found = reached(client, job, lambda found: iteration(found) > last + 2)
        assert "interrupted by a restart" in text(found)
        assert "goes on from epoch" in text(found)
        assert client.job(waiting)["status"] == "SUBMITTED"
        client.cancel_job(job)
        assert list(client.follow(waiting))[-1]["status"] == "DONE"


@pytest.mark.slow
def test_a_run_with_faults_ends_with_the_very_weights_of_one_without(trainer: Running, client: Client, tmp_path: Path):
    def weights(name: str, kills: tuple[str, ...]) -> bytes:
        request = {"max_epochs": 40, "pause": 0.1, "pretrained": False, "guard": False}
        job = client.start_job(JobKind.TRAIN, "bright", request)["id"]
        for number, victim in enumerate(kills):
            reached(client, job, lambda found: iteration(found) >= 30 * (number + 1))  # noqa: B023
            os.kill(process_of(trainer, victim).pid, signal.SIGKILL)
            reached(client, job, lambda found: text(found).count("goes on from epoch") > number)  # noqa: B023
        last = list(client.follow(job))[-1]
        assert last["status"] == "DONE", last
        print(text(last))
        return client.download_model("bright", tmp_path / name).read_bytes()

    assert weights("faults", ("RayTrainWorker", "TrainingActor", "JobsActor")) == weights("none", ())


@pytest.mark.slow
def test_a_cancelled_training_leaves_nothing_behind(trainer: Running, client: Client):
    job = begun(trainer, client)
    assert client.cancel_job(job)["status"] == "STOPPED"
    assert not [path for path in trainer.workspace.rglob("*") if job in path.name]
    until(lambda: processes(trainer) == [], every=0.2)


@pytest.mark.slow
def test_two_workers_train_together_and_are_both_made_good(trainer: Running, client: Client):
    job = begun(trainer, client, workers=2)
    # What a run that was killed before this one held is missed for a while: then it begins with one, and grows.
    at = iteration(reached(client, job, lambda found: "2 worker(s)" in text(found)))
    reached(client, job, lambda found: iteration(found) > at + 8)
    times = text(client.job(job)).count("goes on from epoch")
    os.kill(process_of(trainer, "RayTrainWorker").pid, signal.SIGKILL)
    found = reached(client, job, lambda found: text(found).count("goes on from epoch") > times)
    print(text(found))
    assert client.cancel_job(job)["status"] == "STOPPED"


def processes(server: Running) -> list[str]:
    """Those of the server's that belong to a run."""
    found = []
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
            if any(f"ray::{name}" in title for name in RUN) and process.environ().get(MARK) == server.mark:
                found.append(title.strip())
        except psutil.Error:
            continue
    return found
