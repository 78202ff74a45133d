"""Training on Ray: each run in an actor of its own, which is watched, started again after a fault, and stopped.

Owned in a chain: jobs actor, training actor, Ray Train's controller, workers (`actors.trainer`). Whatever of it dies
takes those below with it, and the one above starts it again; the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray import PlacementGroupID
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.environment import runtime_env
from actors.placement import shares_now, waits_for
from actors.run import LOCK, STOP, Run
from rayapp.config import Settings
from rayapp.datastore.job_record import Job
from rayapp.errors import RayappError
from rayapp.jobs.queue import JobContext
from rayapp.training.train_task import TrainRequest, TrainResult

PLACING_S = 5.0
"""Seconds for the workers to start; if no node has room, the job then says what they wait for."""
GRACE_S = 30.0
"""Seconds for a run to stop at its next iteration before it is killed."""
ENDING_S = 5.0
"""Seconds for Ray Train to release its resources once its workers have stopped."""
LIVES = 10
"""Lives of the training actor."""
POLL_S = 0.25


class _WorkersDied(Exception):
    """Workers of the run were lost, through no fault of what is trained."""


class RayTrainingBackend:
    """`rayapp.jobs.training_job.TrainingBackend` on this cluster."""

    def __init__(self, settings: Settings, jobs: ActorHandle) -> None:
        self._settings = settings
        self._jobs = jobs

    def __call__(self, job: Job, request: TrainRequest, checkpoints: Path, context: JobContext) -> TrainResult | None:
        """See `TrainingBackend`."""
        run = Run(job_id=job.id, settings=self._settings, request=request, checkpoints=checkpoints, jobs=self._jobs)
        stop = request.folder / STOP
        stop.unlink(missing_ok=True)
        _free()
        context.note(f"starts processes for a training on {len(request.pairs)} labelled images")
        for _ in range(LIVES):
            actor = ray.remote(TrainingActor).options(num_cpus=0, runtime_env=runtime_env(self._settings)).remote()
            try:
                return self._answer(actor.fit.remote(run), stop, context)
            except (RayActorError, _WorkersDied):
                if context.stop.is_set():
                    return None
                context.note("the training's process died")
            finally:
                ray.kill(actor)
                _gone(request.folder)  # before the folder is removed, or another life begins
                _free()
        raise RayappError(f"the training's process died {LIVES} times")

    def _answer(self, answer: Any, stop: Path, context: JobContext) -> TrainResult | None:
        """Wait for the training's result; after a request to stop, only until rank 0 reaches its next iteration."""
        look = time.monotonic() + PLACING_S
        while not ray.wait([answer], timeout=POLL_S)[0]:
            if look and time.monotonic() > look:
                look = 0.0 if _begun_or_noted(self._settings, stop.parent, context) else time.monotonic() + PLACING_S
            if context.stop.is_set():
                stop.touch()
                _gone(stop.parent)
                ray.wait([answer], timeout=ENDING_S)
                return None
        try:
            result: TrainResult | RayappError | None = ray.get(answer)
        except RayTaskError as error:
            if isinstance(error.cause, RayActorError):
                raise error.cause from error  # Ray Train's controller died
            names = sorted({type(failure).__name__ for failure in _failures(error.cause)})
            if "WorkerHealthCheckFailedError" in names:
                raise _WorkersDied from error  # more often than Ray Train makes good by itself
            raise RayappError(f"the training failed with {', '.join(names)}: the server's log tells more") from error
        if isinstance(result, RayappError):
            raise result
        return result


def _begun_or_noted(settings: Settings, folder: Path, context: JobContext) -> bool:
    """True once rank 0 is at work, or the job's details say what the workers wait for."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            lacks = waits_for(shares_now(settings).training)
    except Timeout:
        return True
    if lacks is not None:
        context.note(lacks)
    return lacks is not None


def _failures(error: BaseException) -> list[BaseException]:
    """The workers' errors within an error of Ray Train; the error itself if it names none."""
    return list(getattr(error, "worker_failures", {}).values()) or [error]


def _gone(folder: Path) -> None:
    """Wait until rank 0 has ended, or is dead, or has not begun."""
    with contextlib.suppress(Timeout), FileLock(folder / LOCK, timeout=GRACE_S):
        pass


def _free() -> None:
    """Remove the placement groups of runs that are over. A killed controller leaves its own behind: Ray keeps one for
    as long as the job lives that made it, and all of this server is one job. Nothing else in it makes any."""
    job = ray.get_runtime_context().get_job_id()
    for group, record in ray.util.placement_group_table().items():
        if group.endswith(job) and record["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


class TrainingActor:
    """One life of a run's trainer."""

    def fit(self, run: Run) -> TrainResult | RayappError | None:
        """Run the training; the return value of rank 0."""
        from actors.trainer import fit  # Ray Train and torch are needed in this process only

        return fit(run)
