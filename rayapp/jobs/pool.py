"""Pool: distributes images over workers, one image each at a time, and survives the loss of workers.

A worker is a function of an image's id whose process may die; each is called from a thread of its own. An image whose
worker died is retried once, by any worker, and fails if that worker dies too. The outcome of each image is passed once
to a callback, one call at a time.
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

MAX_LOST_WORKERS = 2
"""Number of workers that die on an image before it fails."""
BUSY_RETRIES = 60
"""Attempts on an image while a server component is unavailable."""
BUSY_S = 1.0
"""Seconds between these attempts."""


class WorkerLost(Exception):
    """The worker's process died; the next call reaches its replacement."""


class Stopped(Exception):
    """The work was stopped before the image was done."""


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    """The outcome of an image.

    Attributes:
        image_id: The image's id.
        answer: The worker's result, if it succeeded.
        failure: The reason, if it failed.
    """

    image_id: str
    answer: Any = None
    failure: str | None = None


class Worker(Protocol):
    """Works on one image at a time."""

    def __call__(self, image_id: str, stop: threading.Event) -> Any:
        """Work on an image.

        Raises:
            WorkerLost: If the worker's process died.
            Stopped: Soon after `stop` was set.
        """


class Pool:
    """One pass over a list of images."""

    def __init__(self, images: Sequence[str], *, stop: threading.Event, done: Callable[[ImageDone], None]) -> None:
        """A pass that has not started yet.

        Args:
            images: The images' ids.
            stop: Ends the pass early when it is set.
            done: Called with the outcome of each image, one call at a time.
        """
        self._remaining = deque(images)
        self._lost_workers: dict[str, int] = {}
        self._stop = stop
        self._end = threading.Event()
        self._done = done
        self._lock = threading.Lock()
        self._error: Exception | None = None

    def run(self, workers: Sequence[Worker]) -> None:
        """Work on all images; returns when they are done or the pass was stopped.

        Args:
            workers: Each is called from one thread.

        Raises:
            AppBroken, ModelBroken: If no image can be worked on.
            Exception: Whatever `done` raised.
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
                if not self._remaining:
                    return
                image_id = self._remaining.popleft()
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
        """The outcome of an image; None if it is put back to be retried."""
        for _ in range(BUSY_RETRIES):
            try:
                return ImageDone(image_id=image_id, answer=worker(image_id, self._stop))
            except WorkerLost:
                with self._lock:
                    lost = self._lost_workers[image_id] = self._lost_workers.get(image_id, 0) + 1
                    if lost < MAX_LOST_WORKERS:
                        self._remaining.appendleft(image_id)
                        return None
                return ImageDone(image_id=image_id, failure=f"{lost} worker processes died while working on it")
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
        return ImageDone(image_id=image_id, failure="a server component stayed unavailable: submit the job again")
