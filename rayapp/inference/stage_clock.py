"""Times of the stages of one prediction."""

from __future__ import annotations

import time


class StageClock:
    """Stopwatch that sums up seconds by stage. Belongs to one prediction, so to one thread at a time.

    Attributes:
        seconds: what each stage took so far, by name: "pre", "infer", "invert" (back onto the image's grid), "post".
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """Add the time since the last call to a stage."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def resume(self) -> None:
        """Ignore the time since the last call, during which the prediction was suspended."""
        self._last = time.perf_counter()
