"""BoundedWait: waiting for an archive, by few callers at once and for a limited time.

Every request that needs the archive holds one of the datastore's threads while it waits. Without a bound, a slow
archive would occupy all of them, and saves and clicks would wait for it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as Late
from typing import TypeVar

from rayapp.errors import Busy

T = TypeVar("T")
WAITING = 8
"""Maximum number of callers that wait at once; others are told to try again."""
PATIENCE_S = 50.0
"""Maximum seconds that a caller waits before it is told to try again."""


class BoundedWait:
    """Waits, with a limit, for work that runs in the background. Thread-safe."""

    def __init__(self) -> None:
        self._places = threading.Semaphore(WAITING)

    def result(self, begin: Callable[[], Future[T]], late: str, *, patience: float = PATIENCE_S) -> T:
        """The result of the work, or whatever it raises.

        Args:
            begin: starts the work, or joins it if it is in progress.
            late: what is not finished when the time is up, for the error's text.
            patience: seconds to wait.

        Raises:
            Busy: the work takes longer and continues, or too many callers are waiting already.
        """
        if not self._places.acquire(blocking=False):
            raise Busy("too many requests are waiting for the DICOM archive; try again in a second")
        try:
            return begin().result(patience)
        except Late:
            raise Busy(f"{late} from the DICOM archive; try again in a second") from None
        finally:
            self._places.release()

    def briefly(self, begin: Callable[[], Future[T]], seconds: float) -> None:
        """Wait up to `seconds` for the work, unless too many callers are waiting already; it continues in any case."""
        work = begin()
        if self._places.acquire(blocking=False):
            try:
                wait([work], seconds)
            finally:
                self._places.release()
