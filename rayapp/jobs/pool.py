"""Pool: hands images to workers, one each at a time, until all are done, whatever becomes of the workers.

A worker is a function of an image's id that may end with its process; each is called from a thread of its own here. An
image whose worker was lost is done once more, by any; one that loses a second is given up. The outcome of an image is
told once, in the order they come, to one callback at a time.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayapp.errors import AppBroken, Busy, ModelBroken, RayappError

logger = logging.getLogger(__name__)

LIVES = 2
"""Workers that an image may lose."""
BUSY = 60
"""Times that an image is tried again because a part of the server is away."""
BUSY_S = 1.0


class WorkerLost(Exception):
    """The worker's process is gone; the next call finds it, or another, in its place."""


class Stopped(Exception):
    """The work was told to stop, and the image is left undone."""


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    """What became of an image: what the worker answered, or why it failed."""

    image_id: str
    answer: Any = None
    failure: str | None = None


class Worker(Protocol):
    """Does one image after the other."""

    def __call__(self, image_id: str, stop: threading.Event) -> Any:
        """Raises WorkerLost, and Stopped soon after `stop` was set."""


class Pool:
    """One pass over some images."""

    def __init__(self, images: Sequence[str], *, stop: threading.Event, done: Callable[[ImageDone], None]) -> None:
        self._left = deque(images)
        self._lost: dict[str, int] = {}
        self._stop = stop
        self._end = threading.Event()
        self._done = done
        self._lock = threading.Lock()
        self._error: Exception | None = None

    def run(self, workers: Sequence[Worker]) -> None:
        """Return when all images are done, or it was stopped.

        Raises:
            AppBroken, ModelBroken: what no image can be done with.
            Exception: what `done` raised.
        """
        threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self, worker: Worker) -> None:
        while not (self._stop.is_set() or self._end.is_set()):
            with self._lock:
                if not self._left:
                    return
                image_id = self._left.popleft()
            try:
                outcome = self._outcome(worker, image_id)
                if outcome is not None:
                    with self._lock:
                        self._done(outcome)
            except Stopped:
                return
            except Exception as error:
                self._error = error
                self._end.set()

    def _outcome(self, worker: Worker, image_id: str) -> ImageDone | None:
        """None if the image is to be done again."""
        for _ in range(BUSY):
            try:
                return ImageDone(image_id=image_id, answer=worker(image_id, self._stop))
            except WorkerLost:
                with self._lock:
                    lost = self._lost[image_id] = self._lost.get(image_id, 0) + 1
                    if lost < LIVES:
                        self._left.appendleft(image_id)
                        return None
                return ImageDone(image_id=image_id, failure=f"it ended {lost} processes that worked on it")
            except Busy:
                if self._stop.wait(BUSY_S):
                    raise Stopped from None
            except (AppBroken, ModelBroken, Stopped):
                raise
            except RayappError as error:
                return ImageDone(image_id=image_id, failure=error.detail)
            except Exception as error:
                places = "".join(traceback.format_tb(error.__traceback__))
                logger.error("an image of the pool failed with %s\n%s", type(error).__name__, places)
                return ImageDone(image_id=image_id, failure=f"failed with {type(error).__name__}")
        return ImageDone(image_id=image_id, failure="a part of the server stayed away")
