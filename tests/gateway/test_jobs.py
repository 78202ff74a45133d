"""Training on the wire: as MONAI Label's clients ask for it, and as ours follow it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from deployments.routes import jobs as routes
from tests.contract.training_clients import refusal_is_told, slicer_trains
from tests.gateway.conftest import Serve, Served
from tests.jobs.plain import APP, label_all, write_images
from tests.waiting import until

SLOW = {"pause": 0.05, "max_epochs": 100}


@pytest.fixture(scope="module")
def trained(serve: Serve) -> Served:
    """A gateway whose app can be trained, and whose images are labelled."""
    served = serve(app=str(APP), models=("bright", "shiny"))
    write_images(served.settings.studies)
    served.store.refresh()
    for name in ("ct_a", "ct_b", "ct_ü"):
        served.store.remove_image(name)
    label_all(served.store, served.settings.studies)
    return served


@pytest.fixture(autouse=True)
def nothing_runs_after_a_test(request: pytest.FixtureRequest):
    yield
    served = request.getfixturevalue("trained")
    for job in served.jobs.jobs():
        served.jobs.cancel(job.id)
    settle(served)


def settle(served: Served) -> None:
    until(lambda: all(job.over for job in served.jobs.jobs()))


def train(served: Served, query: str = "", model: str = "bright", **params: Any) -> dict[str, Any]:
    answer = served.post(f"/train/{model}{query}", json=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def running(served: Served, job: str) -> dict[str, Any]:
    """The job once it has made progress."""
    until(lambda: served.get(f"/jobs/{job}").json()["progress"])
    return served.get(f"/jobs/{job}").json()


def test_nothing_runs_at_first_and_the_texts_are_the_peers(gateway: Served, trained: Served):
    for path, kind in (("/train/", "Train"), ("/scoring/", "Scoring"), ("/batch/infer", "Batch_infer")):
        answer = gateway.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (404, f"No {kind} Tasks Found")
        answer = gateway.get(f"{path}?check_if_running=true")
        assert (answer.status_code, answer.json()["detail"]) == (404, f"No {kind} Tasks are currently Running")
        assert gateway.get(f"{path}?all=true").json() == []
        assert gateway.send("DELETE", path).json() is None


def test_trainers_are_listed_with_their_options_and_without_statistics(trained: Served):
    info = trained.get("/info/").json()
    assert info["trainers"]["shiny"]["labels"] == {"bright": 1}
    assert info["trainers"]["shiny"]["config"]["guard"] is True
    assert info["trainers"]["shiny"]["config"]["max_epochs"] == 3
    assert info["train_stats"]["shiny"] == {}


def test_a_training_is_followed_to_its_end_and_its_version_serves(trained: Served):
    job = train(trained)
    assert {key: job[key] for key in ("status", "request")} == {"status": "SUBMITTED", "request": {"model": "bright"}}
    time.strptime(job["start_ts"], "%Y-%m-%d %H:%M:%S")
    settle(trained)
    task = trained.get("/train/").json()
    assert (task["id"], task["status"]) == (job["id"], "DONE")
    time.strptime(task["end_ts"], "%Y-%m-%d %H:%M:%S")
    assert task["details"][-1].strip()
    assert trained.get("/train/?all=true").json()[-1] == task
    trained.app.state.description.forget()
    info = trained.get("/info/").json()
    assert info["models"]["bright"]["version"] == task["result"]["version"]
    stats = info["train_stats"]["bright"]
    assert (stats["epoch"], stats["total_epochs"]) == (3, 3)
    assert stats["best_metric"] == task["result"]["metric"] > 0.9
    assert stats["total_time"].count(":") == 2


def test_a_second_training_is_refused_as_the_peer_does_or_waits_its_turn(trained: Served):
    first = train(trained, **SLOW)
    running(trained, first["id"])
    refused = trained.post("/train/bright")
    assert refused.status_code == 429
    assert refused.json() == {"detail": "++++++++++ Train Task is Already Running"}
    second = train(trained, "?enqueue=true", **SLOW)
    assert trained.get("/train/").json()["id"] == second["id"]
    now = trained.get("/train/?check_if_running=true").json()
    assert (now["id"], now["status"]) == (first["id"], "RUNNING")
    stopped = trained.send("DELETE", "/train/").json()
    assert (stopped["id"], stopped["status"]) == (first["id"], "STOPPED")
    assert stopped["details"][-1].strip()
    running(trained, second["id"])
    assert trained.get("/train/?check_if_running=true").json()["id"] == second["id"]


def test_a_training_waited_for_answers_its_statistics(trained: Served):
    stats = train(trained, "?run_sync=true", max_epochs=1)
    assert (stats["total_epochs"], stats["epoch"]) == (1, 1)
    assert "total_time" in stats
    failed = trained.post("/train/bright?run_sync=true", json={"fault": "refuse"})
    assert failed.status_code == 409
    assert "this cannot be trained with" in failed.json()["detail"]


def test_the_old_way_trains_everything_one_after_the_other(trained: Served):
    answers = trained.post("/train/", json={"shiny": {"max_epochs": 1}, "iterations": 1}).json()
    assert list(answers) == ["bright", "shiny"]
    assert [answer["detail"] for answer in answers.values()] == [None, None]
    assert answers["shiny"]["result"]["request"]["max_epochs"] == 1
    settle(trained)
    assert trained.get(f"/jobs/{answers['shiny']['result']['id']}").json()["status"] == "DONE"
    assert "shiny" in trained.get("/models").json()


@pytest.mark.parametrize("body", [b"[1]", b"{", b'"x"'])
def test_a_body_that_is_no_object_is_refused(trained: Served, body: bytes):
    assert trained.post("/train/bright", data=body).status_code == 400


def test_what_cannot_be_trained_is_refused_before_it_becomes_a_job(trained: Served, gateway: Served):
    before = len(trained.jobs.jobs())
    unknown = trained.post("/train/nothing")
    assert unknown.status_code == 404
    assert "bright, shiny" in unknown.json()["detail"]
    assert trained.post("/train/bright", json={"workers": "many"}).status_code == 400
    assert len(trained.jobs.jobs()) == before


def test_an_option_that_the_trainer_does_not_have_is_refused_and_the_nearest_is_named(trained: Served):
    before = len(trained.get("/train/?all=true").json())
    refused = trained.post("/train/bright", json={"max_epoch": 1})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "trainer 'bright' has no option 'max_epoch'; did you mean 'max_epochs'?"
    for body in ({"max_epoch": 1}, {"shiny": {"lr": 0.1}}):
        assert trained.post("/train/", json=body).status_code == 400
    assert len(trained.get("/train/?all=true").json()) == before


def test_what_monai_label_s_clients_and_the_planner_s_users_set_is_accepted(trained: Served):
    options = {"name": "train_01", "device": ["cuda"], "dataset": "CacheDataset", "multi_gpu": True, "spacing": 1.5}
    assert train(trained, "?run_sync=true", **options)


def test_without_labels_there_is_nothing_to_train_on(serve: Serve, trained: Served):
    bare = serve(app=str(APP), models=("bright",))
    answer = bare.post("/train/bright")
    assert answer.status_code == 400
    assert "no image has a final label yet" in answer.json()["detail"]
    assert "final label" in bare.post("/train/").json()["bright"]["detail"]


def test_a_job_that_breaks_says_so_without_private_words(trained: Served):
    job = train(trained, fault="break")
    settle(trained)
    told = trained.get(f"/jobs/{job['id']}")
    assert told.json()["status"] == "ERROR"
    assert "ZeroDivisionError" in told.json()["details"][-1]
    assert "Doe" not in told.text
    assert trained.get("/info/").status_code == 200


def test_a_cancelled_job_leaves_nothing_behind(trained: Served):
    job = train(trained, **SLOW)
    running(trained, job["id"])
    assert (trained.settings.workspace / "runs" / job["id"]).is_dir()
    assert trained.send("DELETE", f"/jobs/{job['id']}").json()["status"] == "STOPPED"
    left = [path for path in trained.settings.workspace.rglob("*") if job["id"] in path.name]
    assert left == []
    assert trained.send("DELETE", "/jobs/nothing").status_code == 404


def test_events_tell_each_change_until_the_job_is_over(trained: Served):
    job = train(trained, pause=0.2)
    told = []
    with requests.get(f"{trained.url}/jobs/{job['id']}/events", stream=True, timeout=20) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith(b"data: "):
                told.append(json.loads(line.removeprefix(b"data: ")))
    assert told[-1]["status"] == "DONE"
    assert len({(event["progress"] or {}).get("iteration") for event in told}) > 2
    assert trained.get("/jobs/nothing/events").status_code == 404


def job_events(served: Served, job: str, last: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Id and data of the events of a job that is over, for a client that has the event `last`."""
    headers = {"Last-Event-ID": last} if last else {}
    with requests.get(f"{served.url}/jobs/{job}/events", stream=True, timeout=60, headers=headers) as stream:
        if stream.status_code == 204:
            return []
        lines = [line for line in stream.iter_lines() if line.startswith((b"id: ", b"data: "))]
    ids = [line.removeprefix(b"id: ").decode() for line in lines if line.startswith(b"id: ")]
    data = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]
    return list(zip(ids, data, strict=True))


def test_a_client_that_reconnects_gets_what_changed_since_and_nothing_twice(trained: Served):
    job = train(trained)["id"]
    settle(trained)
    ((last, data),) = job_events(trained, job)
    assert data["status"] == "DONE"
    assert job_events(trained, job, last) == [], "it has the end already"
    assert job_events(trained, job, "0" * 32) == [(last, data)], "it has an earlier state"


def test_files_for_people_are_listed_and_nothing_else_of_a_job_is_served(trained: Served):
    job = train(trained)["id"]
    settle(trained)
    assert trained.get(f"/jobs/{job}").json()["files"] == ["curves.png"]
    picture = trained.get(f"/jobs/{job}/files/curves.png")
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    for name, status in (
        ("request.json", 400),
        ("none.png", 404),
        ("..%2f..%2fusers.png", 404),
        (".png", 400),
        ("a%5Cb.png", 400),
    ):
        assert trained.get(f"/jobs/{job}/files/{name}").status_code == status, name
    assert trained.get("/jobs/%2e%2e/files/curves.png").status_code in (400, 404)


def test_jobs_of_every_kind_are_listed(trained: Served):
    job = train(trained)
    assert job["id"] in [found["id"] for found in trained.get("/jobs").json()]


def test_versions_are_listed_promoted_and_rolled_back(trained: Served):
    before = trained.get("/models").json()["bright"]["production"]
    train(trained, "?run_sync=true", guard=False)
    models = trained.get("/models").json()["bright"]
    newest = models["versions"][-1]
    assert models["production"] == newest["version"]
    assert newest["verdict"]["promoted"] is True
    assert newest["data"]["pairs"] == 3
    assert newest["params"]["guard"] is False
    back = trained.post("/models/bright/rollback").json()
    assert back["version"] == before
    assert trained.post("/models/bright/promote", json={"version": "v1"}).json() == {"model": "bright", "version": "v1"}
    assert trained.get("/models").json()["bright"]["production"] == "v1"
    assert trained.post("/models/bright/promote", json={"version": "v999"}).status_code == 404
    assert trained.post("/models/bright/promote", json={"version": "../v1"}).status_code == 400
    assert trained.post("/models/bright/promote", json={}).status_code == 422
    assert trained.post("/models/nothing/rollback").status_code == 404


def test_a_worse_candidate_is_kept_and_not_promoted(trained: Served, tmp_path: Path):
    train(trained, "?run_sync=true", max_epochs=6)
    serving = trained.get("/models").json()["bright"]["production"]
    train(trained, "?run_sync=true", learning_rate=-4000.0)
    task = trained.get("/train/").json()
    assert task["result"]["promoted"] is False
    assert "kept and not promoted" in task["details"][-1]
    models = trained.get("/models").json()["bright"]
    assert models["production"] == serving
    assert models["versions"][-1]["version"] == task["result"]["version"]


def test_a_silent_job_is_followed_by_heartbeats(trained: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routes, "HEARTBEAT_S", 0.1)
    job = train(trained, pause=2.0)["id"]
    with requests.get(f"{trained.url}/jobs/{job}/events", stream=True, timeout=20) as stream:
        assert any(line == b": keep-alive" for line in stream.iter_lines())


def test_only_so_many_clients_follow_jobs_at_once(trained: Served, monkeypatch: pytest.MonkeyPatch):
    job = train(trained, **SLOW)["id"]
    monkeypatch.setattr(routes, "STREAMS", 1)
    with requests.get(f"{trained.url}/jobs/{job}/events", stream=True, timeout=20) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = trained.get(f"/jobs/{job}/events")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    until(lambda: not trained.app.state.streams)


def test_the_command_line_lists_follows_and_tells_a_refused_training_in_one_line(trained: Served, tmp_path: Path):
    refusal_is_told(trained.url, tmp_path)


def test_slicers_client_starts_watches_and_stops_a_training(trained: Served):
    slicer_trains(trained.url)


def test_info_does_not_wait_for_the_jobs(trained: Served, monkeypatch: pytest.MonkeyPatch):
    train(trained, "?run_sync=true", max_epochs=1)
    trained.app.state.description.forget()
    known = trained.get("/info/").json()["train_stats"]
    released, asked = threading.Event(), threading.Event()

    def hang() -> dict[str, Any]:
        asked.set()
        released.wait(60)
        return {}

    monkeypatch.setattr(trained.jobs, "train_stats", hang)
    try:
        trained.app.state.description.forget()
        assert trained.get("/info/").json()["train_stats"] == known
        assert asked.is_set()
    finally:
        released.set()
