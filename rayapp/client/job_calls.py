"""Calls about background jobs: training, scoring and batch inference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import cast

from rayapp.client.caller import Caller, Params
from rayapp.client.transport import ATTEMPTS, Call, Unreachable, events, read_json, target_path
from rayapp.errors import Busy, NotFound
from rayapp.protocol import JobKind, Route
from rayapp.responses import Job

_ROUTES = {JobKind.TRAIN: Route.TRAIN, JobKind.SCORING: Route.SCORING, JobKind.BATCH: Route.BATCH}


class JobCalls(Caller):
    """Jobs of the server: one at a time of each kind, in the order of their submission."""

    async def start_job(
        self,
        kind: JobKind,
        name: str,
        request: Params | None = None,
        *,
        enqueue: bool = False,
        images: str | None = None,
    ) -> Job:
        """Submit a job.

        Args:
            kind: Training, scoring or batch inference.
            name: The model to train or to label images with, or the scoring method.
            request: Options of the trainer, the scoring method or the model.
            enqueue: Wait for the running job of this kind rather than fail.
            images: Images to score or to label: `all`, `labeled` or `unlabeled`.

        Raises:
            AlreadyRunning: If a job of this kind is running, unless `enqueue` is set.
            NotFound: If there is no such model or scoring method.
            BadRequest: If an option has a value that is not allowed.
        """
        query = {"enqueue": str(enqueue).lower()}
        body = self._with_client_id(request)
        if images is not None and kind is JobKind.BATCH:
            query["images"] = images
        elif images is not None:
            body["images"] = images
        paths = {
            JobKind.TRAIN: Route.TRAIN_MODEL.filled(model=name),
            JobKind.SCORING: Route.SCORING_METHOD.filled(method=name),
            JobKind.BATCH: Route.BATCH_MODEL.filled(model=name),
        }
        call = Call(method="POST", path=paths[kind], query=query, json=body)
        return cast(Job, await self._transport.send(call, read_json))

    async def jobs(self, kind: JobKind | None = None) -> list[Job]:
        """All jobs, or all of one kind, oldest first."""
        if kind is None:
            return cast("list[Job]", await self._get(Route.JOBS))
        try:
            return cast("list[Job]", await self._get(_ROUTES[kind], all="true"))
        except NotFound:
            return []

    async def job(self, job: str) -> Job:
        """A job by its id, with the names of the files that it made for people."""
        return cast(Job, await self._get(Route.JOB.filled(job_id=job)))

    async def follow(self, job: str) -> AsyncGenerator[Job, None]:
        """Follow a job: its state at each change, up to its end. Reconnects when the connection breaks, and goes on
        behind the last state that it has received.

        Args:
            job: The job's id.
        """
        failures, last = 0, ""
        while True:
            try:
                call = Call(method="GET", path=Route.JOB_EVENTS.filled(job_id=job), last_event=last)
                async with self._transport.opened(call) as response, aclosing(events(response)) as changes:
                    async for _, change, event_id in changes:
                        failures, last = 0, event_id
                        yield cast(Job, change)
                        if "end_ts" in change:
                            return
            except (Unreachable, Busy):
                failures += 1
                if failures == ATTEMPTS:
                    raise
            await asyncio.sleep(failures)

    async def cancel_job(self, job: str) -> Job:
        """Cancel a job that is waiting or running, by its id."""
        return cast(Job, await self._send("DELETE", Route.JOB.filled(job_id=job)))

    async def download_job_file(self, job: str, name: str, to: Path) -> Path:
        """Download one of a job's files, such as the learning curves, or the page of a training's result.

        Args:
            job: The job's id.
            name: The file's name, as the job's `files` lists it.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return await self._download(Route.JOB_FILE.filled(job_id=job, name=name), target_path(to, name))

    async def running(self, kind: JobKind) -> bool:
        """True while a job of this kind is running."""
        return await self._exists(_ROUTES[kind], "GET", check_if_running="true")

    async def stop_job(self, kind: JobKind) -> Job | None:
        """Stop the running job of this kind.

        Args:
            kind: Training, scoring or batch inference.

        Returns:
            The stopped job, or None when none was running.
        """
        return cast("Job | None", await self._send("DELETE", _ROUTES[kind]))
