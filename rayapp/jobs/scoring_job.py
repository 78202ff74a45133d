"""Scoring and batch inference: jobs over many images, gone on with after a crash where they were.

What an image's run is called, method, model version and options, says whether it was scored before; in other jobs the
run is the job. `Scoring` and `BatchInference` are called by one thread each; their results come from the pool's.
"""

from __future__ import annotations

import hashlib
import json
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

FLUSH_S, FLUSH_ROWS = 5.0, 64
"""Results that are recorded together: what a crash may make the pool do again."""
SHOWN = 100
"""Images that failed, as a job's result lists them."""
AUTO = "auto_score"
"""In `--conf`: methods, separated by commas, or "true" for all that ask a model, that score whatever is new."""
AUTO_S = 10.0
"""Seconds between two looks for what is new."""


class ScoringBackend(Protocol):
    """Gets images worked on somewhere, by as many workers as there is room for, or `workers`."""

    def __call__(
        self,
        work: ImageWork,
        images: Sequence[str],
        *,
        workers: int,
        stop: threading.Event,
        done: Callable[[ImageDone], None],
    ) -> None:
        """As of `rayapp.jobs.pool.Pool.run`."""


class Planner(Protocol):
    """What scoring needs of the models' owner, which alone runs the app's code here."""

    def scoring_plan(self, name: str, request: Mapping[str, Any]) -> ScoringPlan:
        """See `rayapp.serving.catalogue.Catalogue.scoring_plan`."""

    def describe(self) -> dict[str, Any]:
        """See `rayapp.serving.catalogue.Catalogue.describe`."""


class _Images:
    """What both kinds of jobs are: a run over images."""

    def __init__(self, *, settings: Settings, datastore: Datastore, crew: ScoringBackend) -> None:
        self._settings = settings
        self._datastore = datastore
        self._crew = crew

    def _run(self, job: Job, desk: JobContext, work: ImageWork, run: str, images: Labelled) -> Outcome | None:
        request = job.request
        waiting = self._datastore.unscored(run, images=images, failed=not request.get("auto"))
        most = _whole(request, "max_batch_size")
        waiting = waiting[:most] if most else waiting
        took = _Taking(self._settings, self._datastore, desk, job, work, run, total=len(waiting))
        desk.note(f"{len(waiting)} images to do" + (f" with {work.model} {work.version or ''}" if work.model else ""))
        try:
            if waiting:
                self._crew(work, waiting, workers=_whole(request, "workers"), stop=desk.stop, done=took)
        finally:
            took.flush()
        if desk.stop.is_set():
            return None
        return took.outcome()

    def clean(self, job: Job) -> None:
        """One file of the rows of a job, also of one that was stopped: its images stay scored."""
        score_files.merge_parts(self._settings.studies, job.id)


class Scoring(_Images):
    """Runs the jobs of kind `scoring`."""

    def __init__(self, *, settings: Settings, datastore: Datastore, crew: ScoringBackend, models: Planner) -> None:
        super().__init__(settings=settings, datastore=datastore, crew=crew)
        self._models = models

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Raises NotFound for a method that the app lacks, and BadRequest for options that are of no use."""
        plan = self._models.scoring_plan(checked_name(name, "scoring method"), request)
        images_of(request, plan.images)
        for number in ("workers", "max_batch_size"):
            _whole(request, number)

    def run(self, job: Job, desk: JobContext) -> Outcome | None:
        """See `rayapp.jobs.queue.Runner`."""
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
        return self._run(job, desk, work, run, images_of(job.request, plan.images))

    def due(self, name: str) -> bool:
        """Whether some image was never tried with the method and the version that serves now."""
        try:
            plan = self._models.scoring_plan(name, {})
        except (BadRequest, NotFound):  # no model serves yet
            return False
        return bool(self._datastore.unscored(_run_name(name, plan), images=plan.images, failed=False))

    def automatic(self) -> list[str]:
        """The methods that `AUTO` names."""
        names = self._settings.conf.get(AUTO, "")
        if not names:
            return []
        methods = self._models.describe()["scoring"]
        try:
            every = parse_flag(names, AUTO)
        except BadRequest:
            return [name.strip() for name in names.split(",") if name.strip() in methods]
        return [name for name, method in methods.items() if every and "model" in method["config"]]


class BatchInference(_Images):
    """Runs the jobs of kind `batch_infer`."""

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Raises BadRequest for options that are of no use."""
        checked_name(name, "model")
        images_of(request, "all")
        checked_name(str(request.get("label_tag") or ORIGINAL), "label_tag")
        for number in ("workers", "max_batch_size"):
            _whole(request, number)

    def run(self, job: Job, desk: JobContext) -> Outcome | None:
        """See `rayapp.jobs.queue.Runner`."""
        work = ImageWork(
            job_id=job.id,
            kind=JobKind.BATCH,
            name=job.name,
            model=job.name,
            version=ModelStore.of(self._settings).serving(job.name),
            user=job.user,
            request={**job.request, "label_tag": str(job.request.get("label_tag") or ORIGINAL)},
        )
        return self._run(job, desk, work, f"{job.name}:{job.id}", images_of(job.request, "all"))


class _Taking:
    """Takes what workers answer: into the table, the index and the job's progress."""

    def __init__(
        self,
        settings: Settings,
        datastore: Datastore,
        desk: JobContext,
        job: Job,
        work: ImageWork,
        run: str,
        *,
        total: int,
    ) -> None:
        self._studies, self._datastore, self._desk, self._job = settings.studies, datastore, desk, job
        self._work, self._run, self._total = work, run, total
        self._began = self._flushed = time.monotonic()
        self._done = self._skipped = 0
        self._failed: dict[str, str] = {}
        self._failures = 0
        self._rows: list[dict[str, Any]] = []
        self._scores: list[ImageScore] = []

    def __call__(self, done: ImageDone) -> None:
        """One image."""
        self._done += 1
        now = time.time()
        if done.failure is not None:
            self._failures += 1
            if len(self._failed) < SHOWN:
                self._failed[done.image_id] = done.failure
            self._desk.note(f"{done.image_id}: {done.failure}")
            self._scores.append(ImageScore(image_id=done.image_id, run=self._run, ts=now, failed=True))
        else:
            self._took(done.image_id, done.answer, now)
        seconds = time.monotonic() - self._began
        left = seconds / self._done * (self._total - self._done)
        self._desk.progress(
            Progress(epoch=1, epochs=1, iteration=self._done, iterations=self._total, seconds_left=left)
        )
        if len(self._scores) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def _took(self, image_id: str, answer: ImageAnswer, now: float) -> None:
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
        """Record what came: the table first, so that whatever the index knows is in it."""
        rows, scores = self._rows, self._scores
        self._rows, self._scores, self._flushed = [], [], time.monotonic()
        if rows:
            score_files.append_rows(self._studies, self._job.id, rows)
        if scores:
            self._datastore.save_scores(scores)

    def outcome(self) -> Outcome:
        """The job's end."""
        executed = self._done - self._failures - self._skipped
        text = f"{executed} of {self._total} images done"
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
    """A thread that submits a scoring whenever there is something that it would score."""

    def __init__(self, jobs: JobQueue, scoring: Scoring, *, every: float = AUTO_S) -> None:
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
                self._look()
            except RayappError:
                continue  # a part of the server is away, or the app is broken, which is told elsewhere

    def _look(self) -> None:
        for name in self._scoring.automatic():
            pending = any(job.name == name and not job.over for job in self._jobs.jobs(JobKind.SCORING))
            if not pending and self._scoring.due(name):
                job_id = f"auto-{name}-{time.time_ns()}"
                self._jobs.submit(JobKind.SCORING, name, {"auto": True}, job_id=job_id, user="auto_score")


def _run_name(name: str, plan: ScoringPlan) -> str:
    digest = hashlib.sha256(json.dumps(dict(plan.options), sort_keys=True).encode()).hexdigest()[:12]
    return f"{name}:{plan.model}/{plan.version}:{digest}"


def _whole(request: Mapping[str, Any], name: str) -> int:
    try:
        number = int(request.get(name) or 0)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise BadRequest(f"{name} must be a whole number, 0 for no bound of yours")
    return number
