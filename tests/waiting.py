"""Waiting until something that another thread, task or process does has come about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0
"""The longest wait, unless the test says otherwise. A test that passes is never held up by it."""
POLL_S = 0.01


def until(condition: Callable[[], T], *, within: float = PATIENCE_S, every: float = POLL_S) -> T:
    """Wait until a condition is true.

    Args:
        condition: called again and again, in this thread; what it raises ends the wait.
        within: seconds after which the test fails.
        every: seconds between two calls.

    Returns:
        The condition's first true value.
    """
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s; the last value was {value!r}"
        time.sleep(every)
    return value


async def until_async(condition: Callable[[], T], *, within: float = PATIENCE_S) -> T:
    """As `until`, and the event loop goes on meanwhile."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s; the last value was {value!r}"
        await asyncio.sleep(POLL_S)
    return value
