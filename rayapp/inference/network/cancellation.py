"""Cooperative cancellation of inference between windows.

Inference ends early when its caller no longer needs the result, or when it has to make way for a click. Whoever starts
inference supplies a check that raises to cancel; networks run it before each window. State is per thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_local = threading.local()


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Run `check` now and at every `checkpoint` of this thread within the context.

    Args:
        check: Called without arguments; raises to cancel the work.
    """
    check()
    outer = getattr(_local, "check", None)  # of work that lets this pass at one of its checkpoints
    _local.check = check
    try:
        yield
    finally:
        _local.check = outer


def stepping(network: Callable[..., T]) -> Callable[..., T]:
    """The network with a checkpoint before each call, for inferers that call it once for each window."""

    def step(*args: Any, **kwargs: Any) -> T:
        checkpoint()
        return network(*args, **kwargs)

    return step


def checkpoint() -> None:
    """Point between two windows where inference may be cancelled; does nothing outside `interruptible`."""
    check = getattr(_local, "check", None)
    if check is not None:
        check()
