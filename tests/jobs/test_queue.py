"""The queue of jobs: in order, durable, stoppable, and gone on with after a crash."""

from __future__ import annotations

import threading
import time

import pytest

from rayapp.datastore.job_record import State
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import AlreadyRunning, BadRequest, Busy, Disabled, NotFound
from rayapp.jobs import queue as queues
from rayapp.jobs.queue import JobQueue, Outcome
from rayapp.protocol import JobKind
from rayapp.training.train_task import Progress
from tests.waiting import until

PROGRESS = Progress(epoch=2, epochs=3, iteration=5, iterations=9, loss=0.5, metric=0.7, best=0.8, seconds_left=3.0)


class Work:
    """A runner whose jobs end when they are let go."""

    def __init__(self):
        self.ran, self.cleaned = [], []
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.busy = 0

    def check(self, name, request):
        if request.get("wrong"):
            raise BadRequest("wrong")

    def run(self, job, context):
        self.ran.append(job.id)
        context.progress(PROGRESS, durable=True)
        self.began.release()
        if self.busy:
            self.busy -= 1
            raise Busy("away")
        while not self.go.acquire(timeout=0.01):
            if context.stop.is_set():
                return None
        if job.request.get("fault"):
            raise job.request["fault"]
        return Outcome(text="went well", stats={"best_metric": 0.9}, result={"version": "v2"})

    def clean(self, job):
        self.cleaned.append((job.id, job.state))


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


@pytest.fixture
def store(studies):
    store = LocalDatastore(studies, watch=False)
    yield store
    store.close()


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def jobs(store, work, withdrawals):
    jobs = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    yield jobs
    jobs.close()


def submit(jobs, name, **given):
    kind = given.pop("kind", JobKind.TRAIN)
    enqueue = given.pop("enqueue", True)
    return jobs.submit(kind, "bright", given, job_id=name, user="ann", enqueue=enqueue)


def ended(jobs, *names):
    until(lambda: all(jobs.job(name).over for name in names))
    return [jobs.job(name) for name in names]


def test_jobs_of_a_kind_run_one_at_a_time_in_the_order_they_came(jobs, work):
    for name in "abc":
        assert submit(jobs, name).state is State.SUBMITTED
    work.began.acquire(timeout=5)
    assert jobs.running(JobKind.TRAIN).id == "a"
    assert [job.state for job in jobs.jobs(JobKind.TRAIN)][1:] == [State.SUBMITTED, State.SUBMITTED]
    work.go.release(3)
    assert {job.state for job in ended(jobs, "a", "b", "c")} == {State.DONE}
    assert work.ran == ["a", "b", "c"]
    assert jobs.running(JobKind.TRAIN) is None


def test_kinds_run_side_by_side(store, withdrawals):
    works = {JobKind.TRAIN: Work(), JobKind.SCORING: Work()}
    jobs = JobQueue(store, works, withdrawals)
    submit(jobs, "a")
    submit(jobs, "b", kind=JobKind.SCORING)
    assert all(work.began.acquire(timeout=5) for work in works.values())
    assert [jobs.running(kind).id for kind in works] == ["a", "b"]
    jobs.close()


def test_a_job_that_is_done_says_what_it_made(jobs, work):
    submit(jobs, "a", epochs=3)
    work.go.release()
    (job,) = ended(jobs, "a")
    told = job.as_json()
    assert {key: told[key] for key in ("id", "status", "request")} == {
        "id": "a",
        "status": "DONE",
        "request": {"epochs": 3, "gpus": "all"},
    }
    for key in ("start_ts", "end_ts"):
        time.strptime(told[key], "%Y-%m-%d %H:%M:%S")
    assert told["details"][-1].endswith("went well")
    assert told["progress"]["iteration"] == 5
    assert told["result"] == {"version": "v2"}
    stats = jobs.train_stats()["bright"]
    assert stats["best_metric"] == 0.9
    assert (stats["epoch"], stats["total_epochs"]) == (2, 3)
    assert stats["total_time"].count(":") == 2


def test_statistics_of_a_training_under_way_have_no_total_time_and_a_number_for_the_metric(jobs, work):
    submit(jobs, "a")
    work.began.acquire(timeout=5)
    stats = jobs.train_stats()["bright"]
    assert stats["best_metric"] == 0.8
    assert "current_time" in stats
    assert "total_time" not in stats
    work.go.release()


def test_a_second_job_is_refused_unless_it_may_wait(jobs, work):
    submit(jobs, "a")
    with pytest.raises(AlreadyRunning, match=r"^\+{10} Train Task is Already Running$"):
        submit(jobs, "b", enqueue=False)
    work.go.release()
    ended(jobs, "a")
    submit(jobs, "b", enqueue=False)


def test_the_same_submission_sent_twice_is_one_job(jobs):
    assert submit(jobs, "a").created == submit(jobs, "a", enqueue=False).created
    assert len(jobs.jobs()) == 1


def test_a_request_that_is_wrong_never_becomes_a_job(jobs):
    with pytest.raises(BadRequest):
        submit(jobs, "a", wrong=True)
    with pytest.raises(Disabled):
        submit(jobs, "a", kind=JobKind.BATCH)
    assert jobs.jobs() == []
    with pytest.raises(NotFound):
        jobs.job("a")


@pytest.mark.parametrize(
    ("fault", "text"), [(BadRequest("say it better"), "say it better"), (KeyError("/srv/Doe^John"), "KeyError")]
)
def test_a_job_that_fails_says_why_and_the_next_one_runs(jobs, work, monkeypatch, fault, text):
    def broken(job, context):
        raise fault

    monkeypatch.setattr(work, "run", broken)
    submit(jobs, "a")
    (job,) = ended(jobs, "a")
    assert job.state is State.ERROR
    assert text in job.details[-1]
    assert "Doe" not in str(job.as_json())
    monkeypatch.undo()
    work.go.release()
    submit(jobs, "b")
    assert ended(jobs, "b")[0].state is State.DONE


def test_a_runner_whose_server_parts_are_away_is_asked_again(jobs, work, monkeypatch):
    monkeypatch.setattr(queues, "RETRY_S", 0.01)
    work.busy = 2
    work.go.release()
    submit(jobs, "a")
    assert ended(jobs, "a")[0].state is State.DONE
    assert work.ran == ["a", "a", "a"]


def test_stopping_ends_the_running_job_and_the_next_begins(jobs, work):
    submit(jobs, "a")
    submit(jobs, "b")
    work.began.acquire(timeout=5)
    assert jobs.cancel("a").stopping
    assert ended(jobs, "a")[0].state is State.STOPPED
    assert work.cleaned[0] == ("a", State.STOPPED)
    work.began.acquire(timeout=5)
    assert jobs.running(JobKind.TRAIN).id == "b"
    work.go.release()
    ended(jobs, "b")
    assert jobs.cancel("b").state is State.DONE


def test_a_waiting_job_is_cancelled_at_once_and_never_runs(jobs, work):
    submit(jobs, "a")
    submit(jobs, "b")
    assert jobs.cancel("b").state is State.STOPPED
    work.go.release(2)
    ended(jobs, "a")
    submit(jobs, "c")
    ended(jobs, "c")
    assert work.ran == ["a", "c"]


def test_what_was_running_when_the_server_stopped_goes_on_first_and_says_so(studies, store, withdrawals):
    work = Work()
    jobs = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    submit(jobs, "a")
    submit(jobs, "b")
    work.began.acquire(timeout=5)
    jobs.close()
    assert work.cleaned == []
    again = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    work.began.acquire(timeout=5)
    job = again.running(JobKind.TRAIN)
    assert job.id == "a"
    assert job.progress == PROGRESS
    assert "resumes" in job.details[-1]
    work.go.release(2)
    assert [job.state for job in ended(again, "a", "b")] == [State.DONE, State.DONE]
    assert work.ran == ["a", "a", "b"]
    again.close()


def test_a_job_that_was_being_stopped_when_the_server_died_does_not_go_on(store, withdrawals):
    work = Work()
    jobs = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    submit(jobs, "a")
    work.began.acquire(timeout=5)
    record = jobs.job("a")
    jobs.close()
    from dataclasses import replace

    store.save_job(replace(record, stopping=True))
    again = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    assert ended(again, "a")[0].state is State.STOPPED
    assert work.ran == ["a"]
    assert work.cleaned == [("a", State.STOPPED)]
    again.close()


def test_records_survive_and_only_the_newest_are_kept(studies, store, work, withdrawals, monkeypatch):
    monkeypatch.setattr(queues, "MAX_RECORDS", 3)
    jobs = JobQueue(store, {JobKind.TRAIN: work}, withdrawals)
    work.go.release(6)
    for name in "abcdef":
        submit(jobs, name)
        ended(jobs, name)
    submit(jobs, "g", epochs=1)
    jobs.close()
    store.close()
    kept = LocalDatastore(studies, watch=False)
    assert [job.id for job in kept.jobs()] == ["d", "e", "f", "g"]
    assert kept.jobs()[0].details == jobs.job("d").details
    assert ("a", State.STOPPED) in work.cleaned
    kept.close()


def test_details_are_the_last_twenty_lines(jobs, work):
    submit(jobs, "a")
    work.began.acquire(timeout=5)
    for number in range(30):
        jobs.note("a", f"line {number}")
    assert len(jobs.job("a").details) == 20
    assert jobs.job("a").details[-1].endswith("line 29")
    work.go.release()
    (job,) = ended(jobs, "a")
    jobs.note("a", "too late")
    assert jobs.job("a") == job
