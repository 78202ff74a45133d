"""Submission of jobs: one that a client was told has failed never runs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from deployments.clients import JobsClient
from rayapp.datastore.job_record import Job
from rayapp.errors import Busy
from rayapp.protocol import JobKind

logger = logging.getLogger(__name__)

RETRY_S = 1.0
TRIES = 600
"""Tries to withdraw a job, `RETRY_S` apart."""
_withdrawals: set[asyncio.Task[None]] = set()
"""Tasks under way; the event loop itself keeps none of them."""


async def submit(
    jobs: JobsClient, kind: JobKind, name: str, options: dict[str, Any], *, user: str, enqueue: bool
) -> Job:
    """Submit a job. Raises as `JobQueue.submit`.

    If it is not known whether the queue has taken the job, because there was no answer in time, Busy is raised and the
    job is withdrawn in the background.
    """
    # The id is chosen here, so that a retry after a fault submits no second job.
    job_id = str(uuid.uuid4())
    try:
        return await jobs.submit(kind, name, options, job_id=job_id, user=user, enqueue=enqueue)
    except Busy:
        task = asyncio.create_task(_withdraw(jobs, job_id))
        _withdrawals.add(task)
        task.add_done_callback(_withdrawals.discard)
        raise


async def _withdraw(jobs: JobsClient, job_id: str) -> None:
    for _ in range(TRIES):
        try:
            await jobs.withdraw(job_id)
            return
        except Busy:
            await asyncio.sleep(RETRY_S)
    logger.error("job %s could not be withdrawn: cancel it if it runs", job_id)
