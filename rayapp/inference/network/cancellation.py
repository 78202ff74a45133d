"""Interruption: how long work in a network ends early, when nobody wants its end any more or a click waits.

Whoever starts the work says what to check; networks ask at each of their windows. For any thread, each for itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_here = threading.local()


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Run `check` now, and at each `step` of this thread herein; what it raises ends the work."""
    check()
    _here.check = check
    try:
        yield
    finally:
        del _here.check


def step() -> None:
    """Called between two steps: the place where work may end."""
    check = getattr(_here, "check", None)
    if check is not None:
        check()
