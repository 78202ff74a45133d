"""A job ends once and for good, whatever comes late, fails, or is no number."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest

from rayapp.datastore.job_record import Job, Progress, State
from rayapp.errors import Busy, Conflict
from rayapp.jobs import queue as queues
from rayapp.jobs import withdrawals
from rayapp.jobs.queue import JobQueue, Outcome
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind
from tests.waiting import until

PROGRESS = Progress(epoch=1, epochs=2, iteration=1, iterations=2)
NAN, INF = math.nan, math.inf


def ignore(job):
    """Nothing happens."""


def succeed(job, context):
    return Outcome(text="done")


def until_stopped(job, context):
    return None if context.stop.wait(60) else Outcome(text="it ran to its end")


class MemoryLedger:
    """A `Ledger` in memory that may be told to refuse, and what to do in the middle of saving an end."""

    def __init__(self) -> None:
        self.records: dict[str, Job] = {}
        self.refusals = 0
        self.answers_lost = 0
        self.on_end = ignore
        self.ends = 0

    def jobs(self) -> list[Job]:
        return list(self.records.values())

    def save_job(self, job: Job) -> None:
        if job.over:
            self.ends += 1
            self.on_end(job)
            if self.refusals:
                self.refusals -= 1
                raise Busy("the datastore is restarting")
        self.records[job.id] = job
        if self.answers_lost:
            self.answers_lost -= 1
            raise Busy("no answer in time")

    def forget_jobs(self, ids) -> None:
        for job_id in ids:
            del self.records[job_id]


class Script:
    """A runner that does, for each job by name, what it was told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.work = succeed
        self.on_clean = ignore

    def check(self, name, request) -> None:
        pass

    def run(self, job, context):
        self.ran.append(job.id)
        return self.work(job, context)

    def clean(self, job) -> None:
        self.on_clean(job)


class Jobs:
    """A queue over a scripted runner, and an event for each job's end."""

    def __init__(self, monkeypatch, withdrawals: Withdrawals) -> None:
        monkeypatch.setattr(queues, "RETRY_S", 0.01)
        self.ledger, self.runner, self.withdrawals = MemoryLedger(), Script(), withdrawals
        self.start()

    def start(self) -> None:
        self.queue = JobQueue(self.ledger, {JobKind.TRAIN: self.runner}, self.withdrawals)

    def submit(self, name: str) -> None:
        self.queue.submit(JobKind.TRAIN, "m", {}, job_id=name, user="ann")

    def end(self, name: str) -> Job:
        with self.queue._changed:
            assert self.queue._changed.wait_for(lambda: self.queue.job(name).over, 10), self.queue.job(name)
        return self.queue.job(name)


@pytest.fixture
def jobs(monkeypatch, withdrawals):
    jobs = Jobs(monkeypatch, withdrawals)
    yield jobs
    jobs.queue.close()


LATE = {
    "a note": lambda queue: queue.note("a", "late"),
    "progress": lambda queue: queue.progress("a", PROGRESS),
    "progress at a checkpoint": lambda queue: queue.progress("a", PROGRESS, durable=True),
    "a cancellation": lambda queue: queue.cancel("a"),
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
@pytest.mark.parametrize("moment", ["while the end is saved", "while what is left over is removed"])
def test_what_comes_late_does_not_turn_an_ended_job_back(jobs, late, moment):
    def come_late(job: Job) -> None:
        other = threading.Thread(target=late, args=(jobs.queue,))
        other.start()
        other.join()

    if moment == "while the end is saved":
        jobs.ledger.on_end = come_late
    else:
        jobs.runner.on_clean = come_late
    jobs.submit("a")
    job = jobs.end("a")
    assert (job.state, job.stopping) == (State.DONE, False)
    assert jobs.ledger.records["a"] == job


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("kept", [True, False])
def test_a_number_that_json_lacks_is_none_and_the_job_ends(jobs, number, kept):
    def work(job, context):
        context.progress(replace(PROGRESS, loss=number, seconds_left=number), durable=kept)
        context.note("still here")
        return Outcome(text="done", stats={"x": [number, 1.5]}, result={"metric": number})

    jobs.runner.work = work
    jobs.submit("a")
    job = jobs.end("a")
    assert job.state is State.DONE
    assert job.progress == replace(PROGRESS, loss=None, seconds_left=None)
    assert (job.stats, job.result) == ({"x": [None, 1.5]}, {"metric": None})
    assert jobs.ledger.records["a"] == job


def test_a_clean_that_fails_holds_up_neither_the_job_nor_the_next_nor_a_restart(jobs, monkeypatch):
    def broken(job: Job) -> None:
        raise OSError("Directory not empty")

    jobs.runner.on_clean = broken
    jobs.submit("a")
    jobs.submit("b")
    assert [jobs.end(name).state for name in "ab"] == [State.DONE, State.DONE]
    assert jobs.runner.ran == ["a", "b"]
    jobs.queue.close()
    jobs.start()


def test_a_clean_that_fails_does_not_refuse_the_next_submission(jobs, monkeypatch):
    monkeypatch.setattr(queues, "MAX_RECORDS", 1)

    def broken(job: Job) -> None:
        raise OSError("Directory not empty")

    jobs.runner.on_clean = broken
    for name in "abc":
        jobs.submit(name)
        jobs.end(name)
    assert jobs.runner.ran == ["a", "b", "c"]


def test_an_end_that_cannot_be_recorded_is_saved_later_and_the_work_is_not_done_again(jobs):
    jobs.ledger.refusals = 3
    jobs.submit("a")
    assert jobs.end("a").state is State.DONE
    assert jobs.runner.ran == ["a"]
    assert jobs.ledger.ends == 4


def test_a_queue_closes_while_an_end_cannot_be_recorded_and_the_job_goes_on_afterwards(jobs):
    refused = threading.Event()
    jobs.ledger.refusals = 10**9
    jobs.ledger.on_end = lambda _: refused.set()
    jobs.submit("a")
    assert refused.wait(10)
    jobs.queue.close()
    assert jobs.ledger.records["a"].state is State.RUNNING
    jobs.ledger.refusals = 0
    jobs.start()
    assert jobs.end("a").state is State.DONE


def test_an_app_that_exits_ends_its_job_and_not_the_queue(jobs):
    def leave(job, context):
        raise SystemExit(-1)

    jobs.runner.work = leave
    jobs.submit("a")
    assert jobs.end("a").state is State.ERROR
    jobs.runner.work = succeed
    jobs.submit("b")
    assert jobs.end("b").state is State.DONE


@pytest.mark.parametrize("restarted", [False, True])
def test_a_submission_that_was_told_to_have_failed_never_runs(jobs, restarted):
    jobs.ledger.answers_lost = 1
    with pytest.raises(Busy):
        jobs.submit("a")
    assert jobs.ledger.records["a"].state is State.SUBMITTED, "it was recorded all the same"
    if restarted:  # before the queue has heard of it
        jobs.queue.close()
    jobs.withdrawals.record("a")
    if restarted:
        jobs.start()
    until(lambda: jobs.ledger.records["a"].state is State.STOPPED)
    jobs.submit("b")
    assert jobs.end("b").state is State.DONE
    assert jobs.runner.ran == ["b"]


def test_a_withdrawal_that_cannot_be_recorded_is_made_again_after_a_restart_too(jobs):
    jobs.ledger.answers_lost = 1
    with pytest.raises(Busy):
        jobs.submit("a")
    jobs.ledger.refusals = 10**9
    jobs.withdrawals.record("a")
    until(lambda: jobs.ledger.ends > 2)
    jobs.queue.close()
    jobs.ledger.refusals = 3
    jobs.start()
    until(lambda: jobs.queue.job("a").state is State.STOPPED)
    assert jobs.runner.ran == []


def test_a_submission_that_arrives_after_it_was_withdrawn_is_refused(jobs):
    jobs.withdrawals.record("a")
    with pytest.raises(Conflict, match="withdrawn"):
        jobs.submit("a")
    assert jobs.ledger.records == {}


def test_withdrawing_ends_a_running_job_and_leaves_one_that_is_over(jobs):
    jobs.runner.work = until_stopped
    jobs.submit("a")
    until(lambda: jobs.runner.ran)
    jobs.withdrawals.record("a")
    assert jobs.end("a").state is State.STOPPED
    jobs.runner.work = succeed
    jobs.submit("b")
    done = jobs.end("b")
    jobs.withdrawals.record("b")
    jobs.submit("c")
    jobs.end("c")
    assert jobs.queue.job("b") == done


def test_a_running_job_that_is_withdrawn_while_the_server_is_down_does_not_go_on(jobs):
    jobs.runner.work = until_stopped
    jobs.submit("a")
    until(lambda: jobs.runner.ran)
    jobs.queue.close()
    jobs.withdrawals.record("a")
    jobs.start()
    assert jobs.end("a").state is State.STOPPED
    assert jobs.runner.ran == ["a"]


def test_old_withdrawals_are_deleted(jobs, monkeypatch):
    jobs.withdrawals.record("a")
    assert jobs.withdrawals.all() == {"a"}
    monkeypatch.setattr(withdrawals, "KEPT_S", -1.0)
    assert jobs.withdrawals.all() == set()
    assert not jobs.withdrawals.has("a")
