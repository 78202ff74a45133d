"""Waiting until something that another thread, task or process does has come about."""

from __future__ import annotations

import asyncio
import math
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

    Raises:
        TimeoutError: with the last value.
    """
    tries = math.ceil(within / every)
    for _ in range(tries):
        if value := condition():
            return value
        time.sleep(every)
    raise TimeoutError(f"not true in {tries} tries, {every:g} s apart; the last value was {value!r}")


async def until_async(condition: Callable[[], T], *, within: float = PATIENCE_S) -> T:
    """As `until`, and the event loop goes on meanwhile."""
    tries = math.ceil(within / POLL_S)
    for _ in range(tries):
        if value := condition():
            return value
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"not true in {tries} tries, {POLL_S:g} s apart; the last value was {value!r}")
