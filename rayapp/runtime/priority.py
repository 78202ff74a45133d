"""Priority: work that gives way to whoever waits for an answer on this machine.

Linux computes it only when nobody else wants a core. That is not enough: threads are spread over the cores by their
number, whatever their priority, so that two of a network's threads may share a core for as long as a click lasts while
background work has the other. So this work also rests between any two layers of its network while somebody waits.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

PLACE = Path(tempfile.gettempdir()) / f"rayapp-{os.getuid()}.waited-for"
"""A file, always empty, for all of a user's processes on this machine."""
LOOK_S = 0.002
REST_S = 1.0
"""Rests are no longer, and after one as long the work goes on for that time: it is never stopped for good."""


def give_way() -> None:
    """Let this thread, and those it starts, compute only when nobody else wants to."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class ForegroundLoad:
    """Whether somebody waits for an answer of any process of this user on this machine.

    A process locks a byte of its own while somebody waits for it; the system takes the lock back when it ends, however
    that comes. Nobody ever waits for a lock. Where the file cannot be had, nobody seems to wait.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(place or PLACE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._hurry_until = 0.0

    def begin(self) -> None:
        """Somebody waits for this process."""
        self._lock(os.F_TLOCK)

    def end(self) -> None:
        """Nobody does any more."""
        self._lock(os.F_ULOCK)

    def _lock(self, how: int) -> None:
        if self._file is not None:
            os.lseek(self._file, os.getpid(), os.SEEK_SET)
            with contextlib.suppress(OSError):
                os.lockf(self._file, how, 1)

    def by_others(self) -> bool:
        """Whether somebody waits for another process."""
        if self._file is None:
            return False
        os.lseek(self._file, 0, os.SEEK_SET)
        try:
            os.lockf(self._file, os.F_TEST, 0)
        except OSError:
            return True
        return False

    def rest(self) -> None:
        """Return when nobody waits for another process, after REST_S at the latest."""
        began = time.monotonic()
        if began < self._hurry_until:
            return
        while self.by_others():
            if time.monotonic() > began + REST_S:
                self._hurry_until = time.monotonic() + REST_S
                return
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def rest_between_layers() -> None:
    """From now on this process rests before each layer of any network, forward and backward, while somebody waits."""
    # Only here: whoever merely asks for cores must start without torch.
    from torch import Tensor
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    waited_for = ForegroundLoad()

    def before(*_: Any) -> None:
        waited_for.rest()

    def after(_module: Any, _given: Any, answer: Any) -> None:
        if isinstance(answer, Tensor) and answer.requires_grad:
            answer.register_hook(before)  # type: ignore[no-untyped-call]

    register_module_forward_pre_hook(before)
    register_module_forward_hook(after)
