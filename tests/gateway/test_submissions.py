"""Jobs whose submission is not answered in time: the client is told so, and they never run."""

from __future__ import annotations

import asyncio

import pytest

from deployments import submissions
from deployments.clients import JobsClient
from rayapp.datastore.job_record import State
from rayapp.errors import AlreadyRunning, Busy
from rayapp.jobs.queue import JobQueue
from rayapp.protocol import JobKind
from tests.jobs.test_queue_end import MemoryLedger, Script, until_stopped
from tests.waiting import until_async


class Slow(JobQueue):
    """A queue whose answer to a submission is lost, and which is away when it is asked first to withdraw it."""

    away = 2

    def submit(self, *given, **named):
        super().submit(*given, **named)
        raise Busy("no answer in time")

    def withdraw(self, job_id):
        self.away -= 1
        if self.away >= 0:
            raise Busy("it is restarting")
        super().withdraw(job_id)


async def test_a_job_that_the_client_was_told_has_failed_is_withdrawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submissions, "RETRY_S", 0.01)
    runner = Script()
    runner.work = until_stopped
    queue = Slow(MemoryLedger(), {JobKind.TRAIN: runner})
    with pytest.raises(Busy, match="in time"):
        await submissions.submit(JobsClient(queue), JobKind.TRAIN, "m", {}, user="ann", enqueue=True)
    (job,) = queue.jobs()
    await until_async(lambda: queue.job(job.id).over)
    assert queue.job(job.id).state is State.STOPPED
    await until_async(lambda: not submissions._withdrawals)
    await asyncio.to_thread(queue.close)


async def test_a_refused_submission_is_not_withdrawn():
    runner = Script()
    runner.work = until_stopped
    queue = JobQueue(MemoryLedger(), {JobKind.TRAIN: runner})
    jobs = JobsClient(queue)
    job = await submissions.submit(jobs, JobKind.TRAIN, "m", {}, user="ann", enqueue=True)
    with pytest.raises(AlreadyRunning):
        await submissions.submit(jobs, JobKind.TRAIN, "m", {}, user="ann", enqueue=False)
    assert not submissions._withdrawals
    await jobs.cancel(job.id)
    await asyncio.to_thread(queue.close)
