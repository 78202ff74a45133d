"""Scoring on Ray: a crew of actors, each around one `ImageWorker`, that do what clicks leave room for.

Owned by the jobs actor, and gone with the job. Each computes on one thread, and only when nobody else wants to, so that
there may be one on every core beside whatever answers clicks. Another takes the place of one that dies, and the pool
gives its image to the next. A job that is stopped kills them: an image that was begun is left undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.datastore import remote_datastore
from actors.environment import runtime_env
from actors.ray_errors import unwrapped_errors
from rayapp.config import Settings
from rayapp.jobs.image_work import ImageAnswer, ImageWork, ImageWorker
from rayapp.jobs.pool import ImageDone, Pool, Stopped, WorkerLost
from rayapp.runtime import gpu_shares, host, logs
from rayapp.runtime.priority import pause_between_layers, run_in_idle_time

POLL_S = 0.25
"""Seconds until a worker is killed, at most, once its job was told to stop."""
MEMORY_EACH = 4 << 30
"""Bytes of the machine's memory for each worker: a network, an image, and its samples."""


class ScoringActor:
    """One worker."""

    def __init__(self, settings: Settings, datastore: ActorHandle) -> None:
        run_in_idle_time()
        logs.configure(settings)
        self._settings, self._datastore = settings, datastore
        self._worker: ImageWorker | None = None

    def work(self, work: ImageWork, image_id: str) -> ImageAnswer:
        """Do one image; see `ImageWorker`."""
        if self._worker is None:
            import torch

            torch.set_num_threads(1)
            pause_between_layers()
            self._worker = ImageWorker(self._settings, remote_datastore(self._datastore))
        return self._worker(work, image_id)


class RayScoringBackend:
    """`rayapp.jobs.scoring_job.ScoringBackend` on this cluster."""

    def __init__(self, settings: Settings, datastore: ActorHandle) -> None:
        self._settings = settings
        self._datastore = datastore

    def __call__(
        self,
        work: ImageWork,
        images: Sequence[str],
        *,
        workers: int,
        stop: threading.Event,
        done: Callable[[ImageDone], None],
    ) -> None:
        """See `ScoringBackend`."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        size = min(len(images), workers or gpus or self._room())
        options = {"num_cpus": 0, "num_gpus": gpu_shares.SCORING if gpus else 0, "scheduling_strategy": "SPREAD"}
        actor_class = ray.remote(ScoringActor).options(**options, runtime_env=runtime_env(self._settings))
        crew = [_Remote(lambda: actor_class.remote(self._settings, self._datastore), work) for _ in range(size)]
        try:
            Pool(images, stop=stop, done=done).run(crew)
        finally:
            for worker in crew:
                worker.close()

    def _room(self) -> int:
        """One for each core, as far as memory goes. In a cluster its logical CPUs are its cores."""
        if self._settings.ray_address is not None:
            resources = ray.cluster_resources()
            cores, memory = int(resources.get("CPU", 1)), int(resources.get("memory", MEMORY_EACH))
        else:
            cores, memory = host.cores(), host.memory()
        return max(1, min(cores, memory // MEMORY_EACH))


class _Remote:
    """An actor as the pool's worker, and another one when it dies."""

    def __init__(self, make: Callable[[], ActorHandle], work: ImageWork) -> None:
        self._make = make
        self._actor = make()
        self._work = work

    def close(self) -> None:
        """End the actor, whatever it is at."""
        ray.kill(self._actor)

    def __call__(self, image_id: str, stop: threading.Event) -> Any:
        """See `Worker`."""
        answer = self._actor.work.remote(self._work, image_id)
        while not ray.wait([answer], timeout=POLL_S)[0]:
            if stop.is_set():
                raise Stopped
        try:
            with unwrapped_errors():
                return ray.get(answer)
        except RayActorError:
            if stop.is_set():
                raise Stopped from None
            self._actor = self._make()
            raise WorkerLost from None
