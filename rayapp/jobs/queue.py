"""JobQueue: a durable queue of background jobs, first in first out within each kind, the kinds concurrent.

The queue owns every job's record. A change is written to the ledger before it becomes visible, except for progress
between two checkpoints. Each kind has one thread, which runs its jobs one at a time. All methods are thread-safe, and
readers never wait for the ledger. A new queue over the same ledger resumes submitted and running jobs.
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
from rayapp.errors import AlreadyRunning, Busy, Conflict, Disabled, NotFound, RayappError
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import JobKind

logger = logging.getLogger(__name__)

MAX_RECORDS = 200
"""Records of ended jobs that are kept, for each kind."""
RETRY_S = 1.0
"""Seconds before a job or a write to the ledger is tried again."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job that was not stopped.

    Attributes:
        text: A line for people, added to the job's details.
        stats: Statistics of a training, which `/info/` shows.
        result: Results for the job's record; plain JSON.
    """

    text: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Runs the jobs of one kind. `run` and `clean` are called by one thread at a time, `check` by any thread."""

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Check a request before it becomes a job.

        Raises:
            RayappError: Describing what is wrong with the request.
        """

    def run(self, job: Job, context: JobContext) -> Outcome | None:
        """Run a job, or resume it where an earlier call was interrupted.

        Args:
            job: The job's record.
            context: Receives notes and progress, and signals the stop.

        Returns:
            The outcome, or None when the job was stopped.

        Raises:
            Busy: If the job shall be run again after a second.
            RayappError: If the job fails.
        """

    def clean(self, job: Job) -> None:
        """Remove files that an ended job does not need any more, or all its files if it was stopped. Idempotent."""


class JobContext:
    """A running job's connection to the queue: notes, progress and the stop signal."""

    def __init__(self, queue: JobQueue, job_id: str) -> None:
        self._queue = queue
        self._job_id = job_id
        self.stop = threading.Event()
        """Set when the job is cancelled or the server stops."""

    def note(self, text: str) -> None:
        """Add a line to the job's details."""
        self._queue.note(self._job_id, text)

    def progress(self, progress: Progress, *, durable: bool = False) -> None:
        """Report the job's progress; `durable` when it can resume from there."""
        self._queue.progress(self._job_id, progress, durable=durable)


class JobQueue:
    """The jobs of one server."""

    def __init__(self, ledger: Ledger, runners: Mapping[JobKind, Runner], withdrawals: Withdrawals) -> None:
        """Start the queue, with the jobs that the ledger has.

        Args:
            ledger: Stores the jobs' records.
            runners: The runner of each kind.
            withdrawals: Jobs that were withdrawn, which do not run.
        """
        self._ledger = ledger
        self._runners = runners
        self._withdrawals = withdrawals
        self._jobs = {job.id: job for job in ledger.jobs()}
        self._unconfirmed: dict[str, Job] = {}
        """Submissions that the ledger may have recorded or not."""
        self._contexts: dict[str, JobContext] = {}
        self._ending: set[str] = set()
        """Jobs whose end is being recorded: they accept no more changes, though readers still see them running."""
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(kind,), name=f"jobs {kind}", daemon=True) for kind in runners
        ]
        self._threads.append(
            threading.Thread(target=withdrawals.follow, args=(self._withdraw, self._closes), daemon=True)
        )
        self._clean_last()
        for thread in self._threads:
            thread.start()

    def _clean_last(self) -> None:
        """Clean up after the last job of each kind, in case the process died between its end and its clean-up."""
        for kind, runner in self._runners.items():
            over = [job for job in self.jobs(kind) if job.over]
            if over:
                _clean(runner, max(over, key=lambda job: job.ended or 0.0))

    def close(self) -> None:
        """Interrupt running jobs, which the next queue resumes, and end the threads."""
        with self._changed:
            self._closing = True
            for context in self._contexts.values():
                context.stop.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # Reading

    def jobs(self, kind: JobKind | None = None) -> list[Job]:
        """The jobs of a kind, or of all kinds, in the order of their submission."""
        return [job for job in list(self._jobs.values()) if kind is None or job.kind is kind]

    def job(self, job_id: str) -> Job:
        """A job by its id.

        Raises:
            NotFound: If there is no such job.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFound(f"there is no job {job_id[:60]!r}: GET /jobs lists the jobs") from None

    def running(self, kind: JobKind) -> Job | None:
        """The running job of a kind, if there is one."""
        return next((job for job in self.jobs(kind) if job.state is State.RUNNING), None)

    def train_stats(self) -> dict[str, dict[str, Any]]:
        """Statistics of each trainer's newest training that made progress, by trainer."""
        by_trainer = {job.name: job.train_stats() for job in self.jobs(JobKind.TRAIN) if job.progress is not None}
        return {name: stats for name, stats in by_trainer.items() if stats}

    # Changing

    def submit(
        self, kind: JobKind, name: str, request: Mapping[str, Any], *, job_id: str, user: str, enqueue: bool = True
    ) -> Job:
        """Submit a job, durably. It runs after the jobs of its kind before it.

        Args:
            kind: The job's kind.
            name: The model, or the scoring method.
            request: Options; plain JSON.
            job_id: The job's id; submitting the same id again has no effect.
            user: The user who submits it.
            enqueue: Wait for earlier jobs of the kind rather than fail.

        Raises:
            AlreadyRunning: Without `enqueue`, if a job of the kind is running or waiting.
            Conflict: If the job was withdrawn.
            Disabled: If this server runs no jobs of the kind.
            RayappError: If the kind's runner rejects the request.
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
            if self._withdrawals.has(job_id):
                raise Conflict(f"job {job_id!r} was withdrawn: submit another one")
            self._unconfirmed[job_id] = job
            while len(self._unconfirmed) > MAX_RECORDS:
                self._unconfirmed.pop(next(iter(self._unconfirmed)))
            self._put(job)
            self._unconfirmed.pop(job_id)
            self._changed.notify_all()
        self._forget(kind)
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is waiting, else as soon as it notices. An ended job stays unchanged.

        Raises:
            NotFound: If there is no such job.
        """
        with self._changed:
            job = self.job(job_id)
            if self._is_over(job) or job.stopping:
                return job
            if job.state is State.SUBMITTED:
                return self._put(_ended(job, State.STOPPED, "cancelled before it started"))
            job = self._put(replace(_noted(job, "cancellation requested"), stopping=True))
            if job_id in self._contexts:
                self._contexts[job_id].stop.set()
            return job

    def note(self, job_id: str, text: str) -> None:
        """Add a line to a running job's details; ignored once the job has ended."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and not self._is_over(job):
                self._put(_noted(job, text))

    def progress(self, job_id: str, progress: Progress, *, durable: bool = False) -> None:
        """Record a running job's progress; ignored once the job has ended.

        Args:
            job_id: The job's id.
            progress: How far it is.
            durable: Write it to the ledger, as at a checkpoint.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and not self._is_over(job):
                job = replace(job, progress=finite(progress))
                if durable:
                    self._put(job)
                else:
                    self._jobs[job_id] = job

    def _withdraw(self, job_id: str) -> None:
        """Cancel a job whose submission was not answered in time, whether it was recorded or perhaps recorded.

        Raises:
            Busy: If this could not be recorded.
        """
        with self._changed:
            if job_id in self._jobs:
                self.cancel(job_id)
            elif job_id in self._unconfirmed:
                text = "withdrawn: its submission was not answered in time"
                self._put(_ended(self._unconfirmed[job_id], State.STOPPED, text))
                self._unconfirmed.pop(job_id)

    # Running

    def _is_over(self, job: Job) -> bool:
        """True for a job whose record accepts no more changes. Call under the lock."""
        return job.over or job.id in self._ending

    def _put(self, job: Job) -> Job:
        self._ledger.save_job(job)
        self._jobs[job.id] = job
        return job

    def _forget(self, kind: JobKind) -> None:
        """Delete the oldest records beyond `MAX_RECORDS`, so that they do not accumulate."""
        with self._changed:
            over = [job for job in self.jobs(kind) if job.over]
            old = over[: max(0, len(over) - MAX_RECORDS)]
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
                # The ledger is unavailable: the record is unchanged, so the job is run again.
                logger.error("job %s could not be recorded: %s", job.id, type(error).__name__)
                time.sleep(RETRY_S)

    def _next(self, kind: JobKind) -> Job | None:
        """Wait for the next job of a kind, an interrupted one first; None when the queue closes."""
        with self._changed:
            while not self._closing:
                waiting = [job for job in self.jobs(kind) if not job.over]
                waiting.sort(key=lambda job: job.state is not State.RUNNING)
                if waiting:
                    return waiting[0]
                self._changed.wait()
            return None

    def _run(self, job: Job) -> None:
        runner, context = self._runners[job.kind], JobContext(self, job.id)
        with self._changed:
            if self._withdrawals.has(job.id):
                self.cancel(job.id)
            job = self.job(job.id)
            if job.over:
                return
            if job.state is State.RUNNING:
                text = "interrupted by a restart: resumes where it was last saved"
            else:
                text = "started"
                job = replace(job, state=State.RUNNING, started=time.time(), request={**job.request, "gpus": "all"})
            job = self._put(_noted(job, text))
            self._contexts[job.id] = context
            if job.stopping or self._closing:
                context.stop.set()
        try:
            state, outcome = self._outcome(runner, job, context)
        finally:
            with self._changed:
                del self._contexts[job.id]
        with self._changed:
            job = self.job(job.id)
            if state is State.STOPPED and not job.stopping:
                return  # the server stops; the next queue resumes the job
            ended = replace(
                _ended(job, state, outcome.text), stats=finite(outcome.stats), result=finite(outcome.result)
            )
            # From here on a late note, progress or cancellation must not write the running record over the end.
            self._ending.add(job.id)
        try:
            if not self._saved(ended):
                return  # the server stops with the end unrecorded; the next queue resumes the job
            # Files are removed before the end becomes visible.
            _clean(runner, ended)
            with self._changed:
                self._jobs[job.id] = ended
        finally:
            with self._changed:
                self._ending.discard(job.id)
                self._changed.notify_all()

    def _saved(self, ended: Job) -> bool:
        """Record an end, however long the ledger is unavailable, so that finished work is not repeated.

        Returns:
            False if the queue closes first.
        """
        while True:
            try:
                self._ledger.save_job(ended)
                return True
            except Exception as error:
                logger.error("the end of job %s could not be recorded: %s", ended.id, type(error).__name__)
            if self._closes():
                return False

    def _closes(self) -> bool:
        """Wait a moment; True as soon as the queue closes."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, RETRY_S)

    def _outcome(self, runner: Runner, job: Job, context: JobContext) -> tuple[State, Outcome]:
        while not context.stop.is_set():
            try:
                outcome = runner.run(job, context)
            except Busy:
                if not context.stop.wait(RETRY_S):
                    continue
                break
            except RayappError as error:
                return State.ERROR, Outcome(text=error.detail)
            except (Exception, SystemExit) as error:  # an app's code may call exit()
                places = "".join(traceback.format_tb(error.__traceback__))
                logger.error("job %s failed with %s\n%s", job.id, type(error).__name__, places)
                text = f"failed with {type(error).__name__}: see the traceback of job {job.id} in the server's log"
                return State.ERROR, Outcome(text=text)
            if outcome is not None:
                return State.DONE, outcome
            break
        return State.STOPPED, Outcome(text="stopped")


def _clean(runner: Runner, job: Job) -> None:
    """Remove a job's files. A failure, for example on a busy network folder, does not block other jobs."""
    try:
        runner.clean(job)
    except Exception as error:
        logger.error("the files of job %s could not be removed: %s", job.id, type(error).__name__)


def _noted(job: Job, text: str) -> Job:
    clock = time.strftime("%H:%M:%S")
    return replace(job, details=(*job.details, f"{clock} {text}")[-DETAILS:])


def _ended(job: Job, state: State, text: str) -> Job:
    return replace(_noted(job, text), state=state, ended=time.time())
