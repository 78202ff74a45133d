"""Cancellations, notes, failures of the ledger, crashes and clock jumps wherever the queue lets go of its lock."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayapp.datastore.job_record import Job, Progress, State
from rayapp.errors import Busy, RayappError
from rayapp.jobs import queue
from rayapp.jobs.queue import JobContext, JobQueue, Outcome
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind
from tests.memory_folder import memory_folder
from tests.waiting import until

CALLS = ("cancel", "note", "progress", "not a number")
FAILURES = ("the ledger fails", "the answer is lost", "the clock jumps")
ENDS = ("done", "not a number", "error", "unexpected", "busy")


class House:
    """The ledger, the runner and the callers of one queue. At each call the next thing of a script happens."""

    def __init__(self, script: list[str], ends: list[str], cleans: list[bool]) -> None:
        self.script, self.ends, self.cleans = script, ends, cleans
        self.records: dict[str, Job] = {}
        self.ended: dict[str, Job] = {}
        """Ends whose record was acknowledged."""
        self.ran: set[str] = set()
        self.finished: set[str] = set()
        """Jobs whose work has come to its end in this queue."""
        self.faults: list[str] = []
        self.clock = 0.0
        self.callers: list[threading.Thread] = []
        self.queue: JobQueue | None = None

    def happen(self, job_id: str) -> None:
        """Let the next thing happen, as another thread would do it at this moment."""
        if not self.script or threading.current_thread() in self.callers:
            return  # what it calls in turn happens without more
        what = self.script.pop()
        if what == "the clock jumps":
            self.clock += -86_400.0 if self.clock > 0 else 86_400.0
        if what == "the ledger fails":
            raise Busy("the ledger fails")
        if what not in CALLS or self.queue is None:
            return
        caller = threading.Thread(target=self.call, args=(what, job_id), daemon=True)
        self.callers.append(caller)
        caller.start()
        caller.join(0.005)  # it goes on later if the queue holds its lock

    def call(self, what: str, job_id: str) -> None:
        """Call the queue as a route or a late worker does."""
        assert self.queue is not None
        with suppress(RayappError):
            if what == "cancel":
                self.queue.cancel(job_id)
            elif what == "note":
                self.queue.note(job_id, "late")
            else:
                value = float("nan") if what == "not a number" else 0.5
                progress = Progress(epoch=1, epochs=1, iteration=1, iterations=1, best=value)
                self.queue.progress(job_id, progress, durable=True)

    # The ledger

    def jobs(self) -> list[Job]:
        return list(self.records.values())

    def save_job(self, job: Job) -> None:
        lost = self.script[-1:] == ["the answer is lost"]
        self.happen(job.id)
        if job.id in self.ended and job != self.ended[job.id]:
            self.faults.append("an end was written over")
        json.dumps(asdict(job), allow_nan=False)  # as the datastore does
        self.records[job.id] = job
        if lost:
            raise Busy("the answer is lost")
        if job.over:
            self.ended[job.id] = job

    def forget_jobs(self, ids: list[str]) -> None:
        for job_id in ids:
            del self.records[job_id]

    # The runner

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Everything is a job."""

    def run(self, job: Job, context: JobContext) -> Outcome | None:
        self.ran.add(job.id)
        if job.id in self.finished:
            self.faults.append("finished work is done again")
        self.happen(job.id)
        end = self.ends.pop() if self.ends else "done"
        if end == "busy":
            raise Busy("not now")
        if end == "error":
            raise RayappError("it cannot be done")
        if end == "unexpected":
            raise ZeroDivisionError
        self.happen(job.id)
        if context.stop.is_set():
            return None
        self.finished.add(job.id)
        return Outcome(text="done", result={"metric": float("nan") if end == "not a number" else 1.0})

    def clean(self, job: Job) -> None:
        self.happen(job.id)
        if self.cleans and self.cleans.pop():
            raise OSError("Directory not empty")


def every_job_ends(
    folder: Path, script: list[str], ends: list[str], cleans: list[bool], restart: bool, patient: bool
) -> None:
    house = House(script, ends, cleans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "RETRY_S", 0.001)
        real = time.time
        patch.setattr(time, "time", lambda: real() + house.clock)
        ids = [f"job-{number}" for number in range(3)]
        withdrawn: set[str] = set()
        withdrawals = Withdrawals(folder)
        house.queue = JobQueue(house, {JobKind.TRAIN: house}, withdrawals)
        for job_id in ids:
            for _ in range(20):  # a caller that was told 503 tries again by the same id, or gives up
                try:
                    house.queue.submit(JobKind.TRAIN, "m", {}, job_id=job_id, user="ann")
                    break
                except Busy:
                    if not patient:
                        withdrawn.add(job_id)
                        withdrawals.record(job_id)  # by the gateway, which may die now
                        break
        if restart:
            house.queue.close()
            for caller in house.callers:
                caller.join()
            house.queue = None
            house.finished.clear()
            ids = [job_id for job_id in ids if job_id not in withdrawn or job_id in house.records]
            house.queue = JobQueue(house, {JobKind.TRAIN: house}, withdrawals)
        until(lambda: set(ids) <= {job.id for job in house.queue.jobs() if job.over})  # type: ignore[union-attr]
        assert not withdrawn & house.ran
        for caller in house.callers:
            caller.join()
        assert house.faults == []
        assert {job_id: house.queue.job(job_id) for job_id in ids} == house.records
        assert {job.state for job in house.jobs()} <= {State.DONE, State.ERROR, State.STOPPED}
        house.queue.close()


THINGS = st.lists(st.sampled_from((*CALLS, *FAILURES, "nothing", "nothing")), max_size=12)
GIVEN = given(
    script=THINGS,
    ends=st.lists(st.sampled_from(ENDS), max_size=5),
    cleans=st.lists(st.booleans()),
    restart=st.booleans(),
    patient=st.booleans(),
)
ODD = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)


def in_a_folder(work: Callable[..., None], **given: Any) -> None:
    """Do the work with a folder for the withdrawals."""
    folder = memory_folder()
    try:
        work(folder / "withdrawn", **given)
    finally:
        shutil.rmtree(folder)


PLAIN = {"script": [], "ends": [], "cleans": [], "restart": False, "patient": True}


@settings(ODD, max_examples=40, derandomize=True)
@example(**{**PLAIN, "script": ["not a number"] * 9})
@example(**{**PLAIN, "ends": ["not a number"] * 3})
@example(**{**PLAIN, "cleans": [True] * 9})
@example(**{**PLAIN, "script": ["cancel"] * 9})
@example(**{**PLAIN, "script": ["the ledger fails", *["nothing"] * 11]})
@example(**{**PLAIN, "script": ["nothing", "the ledger fails", *["nothing"] * 11]})
@example(**{**PLAIN, "script": ["the answer is lost"], "patient": False})
@example(**{**PLAIN, "script": ["the answer is lost"], "patient": False, "restart": True})
@GIVEN
def test_every_job_ends_and_an_end_stays(**given: Any):
    in_a_folder(every_job_ends, **given)


@pytest.mark.slow
@settings(ODD, max_examples=5000)
@GIVEN
def test_the_same_at_length(**given: Any):
    in_a_folder(every_job_ends, **given)
