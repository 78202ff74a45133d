"""Scoring on Ray: a crew of actors, each around one `ImageWorker`, that do what clicks leave room for.

Owned by the jobs actor, and gone with the job. Each computes on one thread, and only when nobody else wants to, so that
there may be one on every core beside whatever answers clicks. Another takes the place of one that dies, and the pool
gives its image to the next. A job that is stopped kills them: an image that was begun is left undone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.datastore import remote_datastore
from actors.environment import runtime_env
from actors.placement import scorers_now, shares_now, waits_for
from actors.ray_errors import unwrapped_errors
from rayapp.config import Settings
from rayapp.jobs.image_work import ImageAnswer, ImageWork, ImageWorker
from rayapp.jobs.pool import ImageDone, Pool, Stopped, WorkerLost
from rayapp.planner.shares import Resources
from rayapp.runtime import logs
from rayapp.runtime.priority import pause_between_layers, run_in_idle_time

POLL_S = 0.25
"""Seconds until a worker is killed, at most, once its job was told to stop."""
PLACING_S = 5.0
"""Seconds for a worker to start; if no node has room, the job then says what it waits for."""


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
        note: Callable[[str], None],
        done: Callable[[ImageDone], None],
    ) -> None:
        """See `ScoringBackend`."""
        asked = shares_now(self._settings).scorer
        size = min(len(images), workers or scorers_now(self._settings, asked))
        actor_class = ray.remote(ScoringActor).options(
            num_cpus=asked.get("CPU", 0),
            num_gpus=asked.get("GPU", 0),
            scheduling_strategy="SPREAD",
            runtime_env=runtime_env(self._settings),
        )
        placing = _Placing(asked, note)
        crew = [
            _Remote(lambda: actor_class.remote(self._settings, self._datastore), work, placing) for _ in range(size)
        ]
        try:
            Pool(images, stop=stop, done=done).run(crew)
        finally:
            for worker in crew:
                worker.close()


class _Placing:
    """Says once what the crew waits for, if none of it has started after a while.

    Args:
        asked: what each worker asks of its node.
        note: adds a line to the job's details.
    """

    def __init__(self, asked: Resources, note: Callable[[str], None]) -> None:
        self._asked, self._note = asked, note
        self._lock = threading.Lock()
        self._starting: list[Any] = []
        self._look: float | None = time.monotonic() + PLACING_S

    def add(self, actor: ActorHandle) -> None:
        """Watch one more actor start."""
        with self._lock:
            self._starting.append(actor.__ray_ready__.remote())

    def look(self) -> None:
        """To be called while waiting for an answer."""
        with self._lock:
            if self._look is None or time.monotonic() < self._look:
                return
            self._look = None
            if not ray.wait(self._starting, timeout=0)[0] and (lacks := waits_for(self._asked)):
                self._note(lacks)


class _Remote:
    """An actor as the pool's worker, and another one when it dies."""

    def __init__(self, make: Callable[[], ActorHandle], work: ImageWork, placing: _Placing) -> None:
        self._make = make
        self._actor = make()
        self._work = work
        self._placing = placing
        placing.add(self._actor)

    def close(self) -> None:
        """End the actor, whatever it is at."""
        ray.kill(self._actor)

    def __call__(self, image_id: str, stop: threading.Event) -> Any:
        """See `Worker`."""
        answer = self._actor.work.remote(self._work, image_id)
        while not ray.wait([answer], timeout=POLL_S)[0]:
            if stop.is_set():
                raise Stopped
            self._placing.look()
        try:
            with unwrapped_errors():
                return ray.get(answer)
        except RayActorError:
            if stop.is_set():
                raise Stopped from None
            self._actor = self._make()
            raise WorkerLost from None
