"""Submission of jobs: one that a client was told has failed is withdrawn first."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from deployments.clients import JobsClient
from rayapp.datastore.job_record import Job
from rayapp.errors import Busy
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind


async def submit(
    jobs: JobsClient,
    withdrawals: Withdrawals,
    kind: JobKind,
    name: str,
    options: dict[str, Any],
    *,
    user: str,
    enqueue: bool,
) -> Job:
    """Submit a job. Raises as `JobQueue.submit`.

    If it is not known whether the queue has taken the job, because there was no answer in time, the job is withdrawn
    durably, and then Busy is raised.
    """
    # The id is chosen here, so that a retry after a fault submits no second job.
    job_id = str(uuid.uuid4())
    try:
        return await jobs.submit(kind, name, options, job_id=job_id, user=user, enqueue=enqueue)
    except Busy as error:
        try:
            await asyncio.shield(asyncio.to_thread(withdrawals.record, job_id))
        except Busy as cause:
            raise Busy(f"{error.detail}; job {job_id} may run all the same, so look at /jobs: {cause.detail}") from None
        raise
