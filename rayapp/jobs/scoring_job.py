"""Scoring and batch inference jobs, which work on many images and are resumable after a crash.

The results of images are recorded under the name of a run, and images with a result are skipped. A scoring run with a
model is named after method, version and options, so that no image is scored twice by the same; any other run is named
after its job. `Scoring` and `BatchInference` are called by one thread each; results arrive from the pool's threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rayapp.active_learning import score_files
from rayapp.active_learning.scoring_methods import ScoringPlan
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore, ImageScore, Labelled
from rayapp.datastore.job_record import Job, Progress
from rayapp.errors import BadRequest, NotFound, RayappError
from rayapp.jobs.image_work import ImageAnswer, ImageWork, images_of
from rayapp.jobs.pool import ImageDone
from rayapp.jobs.queue import JobContext, JobQueue, Outcome
from rayapp.models.store import ModelStore
from rayapp.protocol import ORIGINAL, JobKind, checked_name, parse_flag

logger = logging.getLogger(__name__)

FLUSH_S, FLUSH_ROWS = 5.0, 64
"""Age in seconds and number at which results are recorded together. A crash loses at most these."""
MAX_LISTED = 100
"""Failed images that a job's result lists."""
AUTO = "auto_score"
"""Key in `--conf`: scoring methods, separated by commas, that run whenever images are new; "true" for all methods that
need a model."""
AUTO_S = 10.0
"""Seconds between two checks for new images."""


class ScoringBackend(Protocol):
    """Works on images with a pool of workers."""

    def __call__(
        self,
        work: ImageWork,
        images: Sequence[str],
        *,
        workers: int,
        stop: threading.Event,
        note: Callable[[str], None],
        done: Callable[[ImageDone], None],
    ) -> None:
        """Work on images; returns when all are done or the work was stopped.

        Args:
            work: The work.
            images: The images' ids.
            workers: Number of workers; 0 for as many as the cluster has room for.
            stop: Ends the work early when it is set.
            note: Adds a line to the job's details, such as what the workers wait for.
            done: Called with the outcome of each image, one call at a time.

        Raises:
            AppBroken, ModelBroken: If no image can be worked on.
        """


class Planner(Protocol):
    """Resolves scoring requests. It lives in the process that owns the models, which alone runs the app's code."""

    def scoring_plan(self, name: str, request: Mapping[str, Any]) -> ScoringPlan:
        """See `rayapp.serving.catalogue.Catalogue.scoring_plan`."""

    def describe(self) -> dict[str, Any]:
        """See `rayapp.serving.catalogue.Catalogue.describe`."""


class _ImageJobs:
    """Base of the runners of jobs over many images."""

    def __init__(self, *, settings: Settings, datastore: Datastore, backend: ScoringBackend) -> None:
        """A runner.

        Args:
            settings: The server's settings.
            datastore: The datastore.
            backend: Works on the images.
        """
        self._settings = settings
        self._datastore = datastore
        self._backend = backend

    def _run(self, job: Job, context: JobContext, work: ImageWork, run: str, images: Labelled) -> Outcome | None:
        request = job.request
        limit = _count(request, "max_batch_size") or None
        pending = self._datastore.unscored(run, images=images, failed=not request.get("auto"), limit=limit)
        results = _Results(self._settings, self._datastore, context, job, work, run, total=len(pending))
        model = f" with {work.model} {work.version or ''}" if work.model else ""
        context.note(f"{len(pending)} images to process{model}")
        try:
            if pending:
                workers = _count(request, "workers")
                self._backend(work, pending, workers=workers, stop=context.stop, note=context.note, done=results)
        finally:
            results.flush()
        if context.stop.is_set():
            return None
        return results.outcome()

    def clean(self, job: Job) -> None:
        """Merge the job's table of results into one file, also for a stopped job, whose images stay scored."""
        score_files.merge_parts(self._settings.studies, job.id)


class Scoring(_ImageJobs):
    """The runner of scoring jobs."""

    def __init__(self, *, settings: Settings, datastore: Datastore, backend: ScoringBackend, models: Planner) -> None:
        """A runner.

        Args:
            settings: The server's settings.
            datastore: The datastore.
            backend: Works on the images.
            models: Resolves requests.
        """
        super().__init__(settings=settings, datastore=datastore, backend=backend)
        self._models = models

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """See `Runner.check`.

        Raises:
            NotFound: If the app has no such scoring method.
            BadRequest: If an option has a value that is not allowed, or no model can score images.
        """
        plan = self._models.scoring_plan(checked_name(name, "scoring method"), request)
        images_of(request, plan.images)
        for number in ("workers", "max_batch_size"):
            _count(request, number)

    def run(self, job: Job, context: JobContext) -> Outcome | None:
        """See `Runner.run`."""
        plan = self._models.scoring_plan(job.name, job.request)
        work = ImageWork(
            job_id=job.id,
            kind=JobKind.SCORING,
            name=job.name,
            model=plan.model,
            version=plan.version,
            user=job.user,
            request=plan.options,
        )
        run = f"{job.name}:{job.id}" if plan.model is None else _run_name(job.name, plan)
        return self._run(job, context, work, run, images_of(job.request, plan.images))

    def due(self, name: str) -> bool:
        """True if there are images that the method has not tried with the version in production."""
        try:
            plan = self._models.scoring_plan(name, {})
        except (BadRequest, NotFound):  # no model is in production yet
            return False
        return bool(self._datastore.unscored(_run_name(name, plan), images=plan.images, failed=False, limit=1))

    def automatic(self) -> list[str]:
        """The scoring methods that the setting `auto_score` names."""
        setting = self._settings.conf.get(AUTO, "")
        if not setting:
            return []
        methods = self._models.describe()["scoring"]
        try:
            every = parse_flag(setting, AUTO)
        except BadRequest:
            return [name.strip() for name in setting.split(",") if name.strip() in methods]
        return [name for name, method in methods.items() if every and "model" in method["config"]]


class BatchInference(_ImageJobs):
    """The runner of batch inference jobs."""

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """See `Runner.check`.

        Raises:
            BadRequest: If an option has a value that is not allowed.
        """
        checked_name(name, "model")
        images_of(request, "all")
        checked_name(str(request.get("label_tag") or ORIGINAL), "label_tag")
        for number in ("workers", "max_batch_size"):
            _count(request, number)

    def run(self, job: Job, context: JobContext) -> Outcome | None:
        """See `Runner.run`."""
        work = ImageWork(
            job_id=job.id,
            kind=JobKind.BATCH,
            name=job.name,
            model=job.name,
            version=ModelStore.of(self._settings).serving(job.name),
            user=job.user,
            request={**job.request, "label_tag": str(job.request.get("label_tag") or ORIGINAL)},
        )
        return self._run(job, context, work, f"{job.name}:{job.id}", images_of(job.request, "all"))


class _Results:
    """Collects the results of a job's images, and writes them to the table, the datastore and the job's progress."""

    def __init__(
        self,
        settings: Settings,
        datastore: Datastore,
        context: JobContext,
        job: Job,
        work: ImageWork,
        run: str,
        *,
        total: int,
    ) -> None:
        self._studies, self._datastore, self._context, self._job = settings.studies, datastore, context, job
        self._work, self._run, self._total = work, run, total
        self._began = self._flushed = time.monotonic()
        self._done = self._skipped = 0
        self._failed: dict[str, str] = {}
        self._failures = 0
        self._rows: list[dict[str, Any]] = []
        self._scores: list[ImageScore] = []

    def __call__(self, done: ImageDone) -> None:
        """Take the outcome of an image."""
        self._done += 1
        now = time.time()
        if done.failure is not None:
            self._failures += 1
            if len(self._failed) < MAX_LISTED:
                self._failed[done.image_id] = done.failure
            self._context.note(f"{done.image_id}: {done.failure}")
            self._scores.append(ImageScore(image_id=done.image_id, run=self._run, ts=now, failed=True))
        else:
            self._add(done.image_id, done.answer, now)
        seconds = time.monotonic() - self._began
        left = seconds / self._done * (self._total - self._done)
        self._context.progress(
            Progress(epoch=1, epochs=1, iteration=self._done, iterations=self._total, seconds_left=left)
        )
        if len(self._scores) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def _add(self, image_id: str, answer: ImageAnswer, now: float) -> None:
        score = answer.score
        if score is None:
            self._skipped += self._work.kind is JobKind.SCORING
            self._scores.append(ImageScore(image_id=image_id, run=self._run, ts=now))
            return
        self._scores.append(
            ImageScore(
                image_id=image_id,
                run=self._run,
                ts=now,
                values=score.values,
                feature=score.feature,
                info=score.info,
                label_infos=score.label_infos,
            )
        )
        work = self._work
        self._rows.append(
            {
                **{"image": image_id, "job": work.job_id, "method": work.name, "model": work.model},
                **{"version": work.version, "options": json.dumps(dict(work.request)), "ts": now},
                "seconds": answer.seconds,
                **score.columns,
            }
        )

    def flush(self) -> None:
        """Write the collected results: to the table first, so that it has every image that the datastore knows."""
        rows, scores = self._rows, self._scores
        self._rows, self._scores, self._flushed = [], [], time.monotonic()
        if rows:
            score_files.append_rows(self._studies, self._job.id, rows)
        if scores:
            self._datastore.save_scores(scores)

    def outcome(self) -> Outcome:
        """The job's outcome."""
        executed = self._done - self._failures - self._skipped
        text = f"{executed} of {self._total} images processed"
        text += f", {self._failures} failed" if self._failures else ""
        latency = round(time.monotonic() - self._began, 3)
        return Outcome(
            text=text,
            result={
                "total": self._total,
                "executed": executed,
                "skipped": self._skipped,
                "failed": dict(self._failed),
                "latency": latency,
            },
        )


class AutoScore:
    """A thread that submits scoring jobs whenever there are images to score."""

    def __init__(self, jobs: JobQueue, scoring: Scoring, *, every: float = AUTO_S) -> None:
        """Start the thread.

        Args:
            jobs: The queue.
            scoring: The runner of scoring jobs.
            every: Seconds between two checks.
        """
        self._jobs, self._scoring, self._every = jobs, scoring, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="auto score", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._submit_due()
            except RayappError:
                continue  # a server component is unavailable, or the app is broken, which is reported elsewhere
            except Exception:
                logger.exception("automatic scoring failed; it is tried again in %g s", self._every)

    def _submit_due(self) -> None:
        for name in self._scoring.automatic():
            pending = any(job.name == name and not job.over for job in self._jobs.jobs(JobKind.SCORING))
            if not pending and self._scoring.due(name):
                job_id = f"auto-{name}-{time.time_ns()}"
                self._jobs.submit(JobKind.SCORING, name, {"auto": True}, job_id=job_id, user="auto_score")


def _run_name(name: str, plan: ScoringPlan) -> str:
    digest = hashlib.sha256(json.dumps(dict(plan.options), sort_keys=True).encode()).hexdigest()[:12]
    return f"{name}:{plan.model}/{plan.version}:{digest}"


def _count(request: Mapping[str, Any], name: str) -> int:
    """A count in a request; 0 if it is absent."""
    try:
        number = int(request.get(name) or 0)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise BadRequest(
            f"{name} must be a whole number of at least 0, where 0 sets no limit, not {str(request.get(name))[:60]!r}"
        )
    return number
