"""JobQueue: background work, durable, first come first served within each kind, the kinds side by side.

Owns every job's record: a change is in the ledger before anybody is told of it, but for progress between two
checkpoints. One thread a kind runs its jobs, one at a time. Any number of threads may call; readers never wait for the
ledger. A queue made anew over the same ledger goes on with what was submitted or running.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rayapp.datastore.job_record import DETAILS, Job, Ledger, Progress, State, finite
from rayapp.errors import AlreadyRunning, Busy, Disabled, NotFound, RayappError
from rayapp.protocol import JobKind

logger = logging.getLogger(__name__)

KEPT = 200
"""Jobs of each kind that are remembered."""
AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job went that was not stopped: `text` in words, `stats` and `result` for its record."""

    text: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Does the work of one kind. Its methods are called by one thread at a time, `check` by any."""

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Raise what is wrong with a request, before it becomes a job."""

    def run(self, job: Job, desk: JobContext) -> Outcome | None:
        """Do the work, from where an earlier run of the same job left off; None when it was asked to stop.

        Raises Busy if it should be run again in a while.
        """

    def clean(self, job: Job) -> None:
        """Remove what the ended job needs no more, all of it if it was stopped; safe to repeat."""


class JobContext:
    """What a runner tells of one job, and where it learns that it shall stop."""

    def __init__(self, queue: JobQueue, job_id: str) -> None:
        self._queue = queue
        self._job_id = job_id
        self.stop = threading.Event()
        """Set when the job shall stop, or the server does."""

    def note(self, text: str) -> None:
        """Add a line to the job's details."""
        self._queue.note(self._job_id, text)

    def progress(self, progress: Progress, *, kept: bool = False) -> None:
        """Tell how far it is; `kept` once it would go on from there."""
        self._queue.progress(self._job_id, progress, kept=kept)


class JobQueue:
    """The jobs of one server."""

    def __init__(self, ledger: Ledger, runners: Mapping[JobKind, Runner]) -> None:
        self._ledger = ledger
        self._runners = runners
        self._jobs = {job.id: job for job in ledger.jobs()}
        self._desks: dict[str, JobContext] = {}
        self._ending: set[str] = set()
        """Jobs whose end is being recorded: as good as over, though readers still see them running."""
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(kind,), name=f"jobs {kind}", daemon=True) for kind in runners
        ]
        self._tidy()
        for thread in self._threads:
            thread.start()

    def _tidy(self) -> None:
        """Clean up after the last job of each kind, which may have ended as the process did."""
        for kind, runner in self._runners.items():
            over = [job for job in self.jobs(kind) if job.over]
            if over:
                _clean(runner, max(over, key=lambda job: job.ended or 0.0))

    def close(self) -> None:
        """Stop running jobs, which go on when the queue is made again, and end the threads."""
        with self._changed:
            self._closing = True
            for desk in self._desks.values():
                desk.stop.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # What there is

    def jobs(self, kind: JobKind | None = None) -> list[Job]:
        """All of that kind, or all, in the order they were submitted."""
        return [job for job in list(self._jobs.values()) if kind is None or job.kind is kind]

    def job(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFound(f"there is no job {job_id[:60]!r}: GET /jobs lists them") from None

    def running(self, kind: JobKind) -> Job | None:
        """The job of that kind that runs."""
        return next((job for job in self.jobs(kind) if job.state is State.RUNNING), None)

    def train_stats(self) -> dict[str, dict[str, Any]]:
        """By trainer, the statistics of its newest training that got somewhere."""
        stats = {job.name: job.train_stats() for job in self.jobs(JobKind.TRAIN) if job.progress is not None}
        return {name: found for name, found in stats.items() if found}

    # What may be asked

    def submit(
        self, kind: JobKind, name: str, request: Mapping[str, Any], *, job_id: str, user: str, enqueue: bool = True
    ) -> Job:
        """Durably take a job on; it runs when those of its kind before it are over. The same `job_id` is taken once.

        Raises:
            AlreadyRunning: without `enqueue`, if a job of the kind runs or waits.
            Disabled: if no such job runs on this server.
            Exception: what the kind's runner says against the request.
        """
        if kind not in self._runners:
            raise Disabled(f"{kind.monai_label} jobs are not available on this server")
        if job_id in self._jobs:
            return self._jobs[job_id]
        self._runners[kind].check(name, request)
        job = Job(id=job_id, kind=kind, name=name, request=dict(request), user=user, created=time.time())
        with self._changed:
            if not enqueue and any(not other.over for other in self.jobs(kind)):
                raise AlreadyRunning(f"++++++++++ {kind.monai_label} Task is Already Running")
            self._put(job)
            self._changed.notify_all()
        self._forget(kind)
        return job

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: at once if it waits still, else soon; no effect on one that is over. Raises NotFound."""
        with self._changed:
            job = self.job(job_id)
            if self._is_over(job) or job.stopping:
                return job
            if job.state is State.SUBMITTED:
                return self._put(_ended(job, State.STOPPED, "stopped before it began"))
            job = self._put(replace(_noted(job, "asked to stop"), stopping=True))
            if job_id in self._desks:
                self._desks[job_id].stop.set()
            return job

    def note(self, job_id: str, text: str) -> None:
        """Add a line to a running job's details. Of jobs that are over nothing more is heard."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and not self._is_over(job):
                self._put(_noted(job, text))

    def progress(self, job_id: str, progress: Progress, *, kept: bool = False) -> None:
        """Note how far a running job is; durably if it is `kept`, that is at a checkpoint."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and not self._is_over(job):
                job = replace(job, progress=finite(progress))
                if kept:
                    self._put(job)
                else:
                    self._jobs[job_id] = job

    # The work

    def _is_over(self, job: Job) -> bool:
        """True for a job whose record changes no more. Call under the lock."""
        return job.over or job.id in self._ending

    def _put(self, job: Job) -> Job:
        self._ledger.save_job(job)
        self._jobs[job.id] = job
        return job

    def _forget(self, kind: JobKind) -> None:
        """Drop the oldest, so that the records do not grow with the years."""
        with self._changed:
            over = [job for job in self.jobs(kind) if job.over]
            old = over[: max(0, len(over) - KEPT)]
            if not old:
                return
            self._ledger.forget_jobs([job.id for job in old])
            for job in old:
                del self._jobs[job.id]
        for job in old:
            _clean(self._runners[kind], replace(job, state=State.STOPPED))

    def _work(self, kind: JobKind) -> None:
        while (job := self._next(kind)) is not None:
            try:
                self._run(job)
            except Exception as error:
                # The ledger does not answer: the record is as it was, so the job is taken up again.
                logger.error("job %s could not be recorded: %s", job.id, type(error).__name__)
                time.sleep(AGAIN_S)

    def _next(self, kind: JobKind) -> Job | None:
        """Wait for the next job of the kind; None when the queue closes. One that was cut short comes first."""
        with self._changed:
            while not self._closing:
                waiting = [job for job in self.jobs(kind) if not job.over]
                waiting.sort(key=lambda job: job.state is not State.RUNNING)
                if waiting:
                    return waiting[0]
                self._changed.wait()
            return None

    def _run(self, job: Job) -> None:
        runner, desk = self._runners[job.kind], JobContext(self, job.id)
        with self._changed:
            job = self.job(job.id)
            if job.over:
                return
            if job.state is State.RUNNING:
                text = "cut short by a restart: goes on from where it was last saved"
            else:
                text = "began"
                job = replace(job, state=State.RUNNING, started=time.time(), request={**job.request, "gpus": "all"})
            job = self._put(_noted(job, text))
            self._desks[job.id] = desk
            if job.stopping or self._closing:
                desk.stop.set()
        try:
            state, outcome = self._outcome(runner, job, desk)
        finally:
            with self._changed:
                del self._desks[job.id]
        with self._changed:
            job = self.job(job.id)
            if state is State.STOPPED and not job.stopping:
                return  # the server stops; the job goes on when it is back
            ended = replace(
                _ended(job, state, outcome.text), stats=finite(outcome.stats), result=finite(outcome.result)
            )
            # From here on a late note, progress or cancellation must not write the running record over the end.
            self._ending.add(job.id)
        try:
            if not self._saved(ended):
                return  # the server stops with the end unrecorded; the job goes on when it is back
            # What is left over is removed before anybody learns of the end.
            _clean(runner, ended)
            with self._changed:
                self._jobs[job.id] = ended
        finally:
            with self._changed:
                self._ending.discard(job.id)
                self._changed.notify_all()

    def _saved(self, ended: Job) -> bool:
        """Record an end, however long the ledger is away, so that finished work is not done again; False if the queue
        closes first."""
        while True:
            try:
                self._ledger.save_job(ended)
                return True
            except Exception as error:
                logger.error("the end of job %s could not be recorded: %s", ended.id, type(error).__name__)
            with self._changed:
                if self._closing or self._changed.wait_for(lambda: self._closing, AGAIN_S):
                    return False

    def _outcome(self, runner: Runner, job: Job, desk: JobContext) -> tuple[State, Outcome]:
        while not desk.stop.is_set():
            try:
                outcome = runner.run(job, desk)
            except Busy:
                if not desk.stop.wait(AGAIN_S):
                    continue
                break
            except RayappError as error:
                return State.ERROR, Outcome(text=error.detail)
            except (Exception, SystemExit) as error:  # an app's code may call exit()
                places = "".join(traceback.format_tb(error.__traceback__))
                logger.error("job %s failed with %s\n%s", job.id, type(error).__name__, places)
                text = f"failed with {type(error).__name__}: the server's log tells more under job {job.id}"
                return State.ERROR, Outcome(text=text)
            if outcome is not None:
                return State.DONE, outcome
            break
        return State.STOPPED, Outcome(text="stopped")


def _clean(runner: Runner, job: Job) -> None:
    """Remove what the job left behind. A failure (a busy network folder, a damaged file) holds up no other job."""
    try:
        runner.clean(job)
    except Exception as error:
        logger.error("what job %s left behind could not be removed: %s", job.id, type(error).__name__)


def _noted(job: Job, text: str) -> Job:
    clock = time.strftime("%H:%M:%S")
    return replace(job, details=(*job.details, f"{clock} {text}")[-DETAILS:])


def _ended(job: Job, state: State, text: str) -> Job:
    return replace(_noted(job, text), state=state, ended=time.time())
