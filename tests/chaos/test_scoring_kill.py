"""kill -9 of what scores, and of what watches over it, on a real server: every image is scored all the same."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rayapp.client import Client, JobKind
from tests.chaos.test_replica_kill import process_of
from tests.chaos.test_training_kill import PATIENCE_S, text
from tests.conftest import Running, started
from tests.waiting import until

pytestmark = pytest.mark.slow

APP = Path(__file__).parents[1] / "apps" / "small"
IMAGES = {f"torso_{n}" for n in range(4)}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("scoring"), "--app", str(APP), "--models", "small") as running:
        yield running
    assert running.survivors() == []


@pytest.fixture
def client(scorer: Running) -> Iterator[Client]:
    with Client(scorer.url) as client:
        yield client
        client.stop_job(JobKind.SCORING)


def slow(client: Client, trace: Path, **options: Any) -> str:
    return client.start_job(JobKind.SCORING, "slow", {"trace": str(trace), "workers": 2, **options})["id"]


def traced(trace: Path) -> list[tuple[int, str]]:
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [(int(pid), image) for pid, image in (line.split() for line in lines)]


def wait_for(trace: Path, images: int) -> list[tuple[int, str]]:
    until(lambda: len(traced(trace)) >= images, within=PATIENCE_S)
    return traced(trace)


def rows(server: Running, job: str) -> list[str]:
    return sorted(pd.read_parquet(server.studies / ".rayapp" / "scores" / f"{job}.parquet")["image"])


def test_a_models_uncertainty_is_measured_and_seen_by_the_client(scorer: Running, client: Client, tmp_path: Path):
    job = client.start_job(JobKind.SCORING, "epistemic", {"samples": 2})["id"]
    *_, done = client.follow(job)
    assert done["status"] == "DONE", text(done)
    assert done["result"]["executed"] == 4
    assert rows(scorer, job) == sorted(IMAGES)
    assert client.uncertainty("epistemic", "torso_0", tmp_path).stat().st_size > 100
    assert client.image_info("torso_0")["epistemic_entropy"] > 0
    first = client.next_sample("epistemic", params={"client_id": "ann"})
    second = client.next_sample("epistemic", params={"client_id": "bob"})
    assert first["id"] != second["id"]


def test_an_image_whose_actor_was_killed_is_scored_once_more_and_all_others_once(
    scorer: Running, client: Client, tmp_path: Path
):
    job = slow(client, tmp_path / "trace", pause=1.5)
    pid, image = wait_for(tmp_path / "trace", 1)[0]
    os.kill(pid, signal.SIGKILL)
    *_, done = client.follow(job)
    assert (done["status"], done["result"]["executed"]) == ("DONE", 4), text(done)
    counted = Counter(name for _, name in traced(tmp_path / "trace"))
    assert counted == {**dict.fromkeys(IMAGES, 1), image: 2}
    assert rows(scorer, job) == sorted(IMAGES)


def test_an_image_that_kills_its_actor_twice_is_listed_as_failed_and_the_rest_is_done(
    scorer: Running, client: Client, tmp_path: Path
):
    job = slow(client, tmp_path / "trace", poison="torso_1")
    *_, done = client.follow(job)
    assert done["status"] == "DONE", text(done)
    assert list(done["result"]["failed"]) == ["torso_1"]
    assert Counter(name for _, name in traced(tmp_path / "trace"))["torso_1"] == 2
    assert rows(scorer, job) == sorted(IMAGES - {"torso_1"})


def test_a_scoring_stops_within_an_image_and_leaves_no_process(scorer: Running, client: Client, tmp_path: Path):
    job = slow(client, tmp_path / "trace", pause=3600.0)
    wait_for(tmp_path / "trace", 1)
    assert client.cancel_job(job)["status"] == "STOPPED"
    assert not [line for line in scorer.survivors() if "ScoringActor" in line]


def test_a_scoring_goes_on_after_its_jobs_actor_was_killed(scorer: Running, client: Client, tmp_path: Path):
    job = slow(client, tmp_path / "trace", pause=7.0, workers=1)
    wait_for(tmp_path / "trace", 2)
    until(lambda: (client.job(job)["progress"] or {}).get("iteration"), within=PATIENCE_S)
    os.kill(process_of(scorer, "JobsActor").pid, signal.SIGKILL)
    *_, done = client.follow(job)
    assert done["status"] == "DONE", text(done)
    assert "interrupted by a restart" in text(done)
    counted = Counter(name for _, name in traced(tmp_path / "trace"))
    assert set(counted) == IMAGES
    assert sum(counted.values()) <= 6  # at most what was not recorded yet is scored again
    assert rows(scorer, job) == sorted(IMAGES)
