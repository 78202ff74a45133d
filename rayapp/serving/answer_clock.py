"""The time that a model has for an answer: it runs while the model computes, and stands still while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class AnswerClock:
    """Limits the seconds that a model computes for one answer.

    Waiting for the network's thread, and letting clicks pass between two windows, is not counted. `within` belongs to
    an event loop; `run` and `pause` may be called in any thread.

    Args:
        limit_s: seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._left = limit_s
        self._since: float | None = None
        self._over = False
        self.expired = False
        """True once the model took longer."""

    async def within(self, answer: Awaitable[T]) -> T:
        """Wait for an answer. Raises TimeoutError with `expired` set once the model took longer; to be called once."""
        try:
            async with self._limit:
                return await answer
        finally:
            self._over, self.expired = True, self._limit.expired()

    def run(self) -> None:
        """The model computes from now on."""
        self._loop.call_soon_threadsafe(self._run)

    def pause(self) -> None:
        """The model waits from now on."""
        self._loop.call_soon_threadsafe(self._pause)

    def paused(self, work: Callable[[], object]) -> None:
        """Run other work in the model's thread, which does not count."""
        self.pause()
        try:
            work()
        finally:
            self.run()

    def _run(self) -> None:
        if not self._over and self._since is None:
            self._since = self._loop.time()
            self._limit.reschedule(self._since + self._left)

    def _pause(self) -> None:
        if not self._over and self._since is not None:
            self._left -= self._loop.time() - self._since
            self._since = None
            self._limit.reschedule(None)
