"""Jobs whose submission is not answered in time: the client is told so, and they never run."""

from __future__ import annotations

import asyncio

import pytest

from deployments import submissions
from deployments.clients import JobsClient
from rayapp.datastore.job_record import State
from rayapp.errors import AlreadyRunning, Busy
from rayapp.jobs.queue import JobQueue
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind
from tests.jobs.test_queue_end import MemoryLedger, Script, until_stopped
from tests.waiting import until_async


class Slow(JobQueue):
    """A queue whose answer to a submission is lost."""

    def submit(self, *given, **named):
        super().submit(*given, **named)
        raise Busy("no answer in time")


async def submit(queue: JobQueue, withdrawals: Withdrawals, *, enqueue: bool = True):
    jobs = JobsClient(queue)
    return await submissions.submit(jobs, withdrawals, JobKind.TRAIN, "m", {}, user="ann", enqueue=enqueue)


@pytest.fixture
def withdrawals(tmp_path):
    return Withdrawals.of(tmp_path)


async def test_a_job_that_the_client_was_told_has_failed_ends_though_the_gateway_dies_then(withdrawals):
    runner = Script()
    runner.work = until_stopped
    queue = Slow(MemoryLedger(), {JobKind.TRAIN: runner}, withdrawals)
    with pytest.raises(Busy, match="in time"):
        await submit(queue, withdrawals)
    (job,) = queue.jobs()
    assert withdrawals.all() == {job.id}, "recorded before the client is told"
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left to be done by the gateway"
    await until_async(lambda: queue.job(job.id).over)
    assert queue.job(job.id).state is State.STOPPED
    await asyncio.to_thread(queue.close)


async def test_a_job_that_cannot_be_withdrawn_is_named(withdrawals, monkeypatch):
    def full(job_id):
        raise Busy("the disk is full")

    monkeypatch.setattr(withdrawals, "record", full)
    queue = Slow(MemoryLedger(), {JobKind.TRAIN: Script()}, withdrawals)
    with pytest.raises(Busy, match=r"in time; job .* may run all the same.*/jobs: the disk is full") as told:
        await submit(queue, withdrawals)
    assert queue.jobs()[0].id in told.value.detail
    await asyncio.to_thread(queue.close)


async def test_a_refused_submission_is_not_withdrawn(withdrawals):
    runner = Script()
    runner.work = until_stopped
    queue = JobQueue(MemoryLedger(), {JobKind.TRAIN: runner}, withdrawals)
    job = await submit(queue, withdrawals)
    with pytest.raises(AlreadyRunning):
        await submit(queue, withdrawals, enqueue=False)
    assert not withdrawals.all()
    await JobsClient(queue).cancel(job.id)
    await asyncio.to_thread(queue.close)
