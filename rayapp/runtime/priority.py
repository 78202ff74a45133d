"""Scheduling priority: background work yields to requests in progress on the same machine.

SCHED_IDLE alone is not enough: Linux balances threads over cores by their number, whatever their priority, so that two
threads of a network may share one core for a whole click while background work keeps the other. Background work
therefore also pauses between the layers of its network while a request is in progress.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

LOCK_FILE = Path(tempfile.gettempdir()) / f"rayapp-{os.getuid()}.waited-for"
"""An always empty file shared by all of a user's processes on this machine; its bytes are locked, never written."""
MAX_OFFSET = 1 << 31
"""Bytes to choose from: so many that no two processes choose the same, and no more than any file system allows."""
POLL_S = 0.002
MAX_PAUSE_S = 1.0
"""Longest pause. After one of this length, work runs for as long without a pause, so that it is never starved."""


def run_in_idle_time() -> None:
    """Let this thread, and those it starts, run only when no other thread needs the CPU."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class ForegroundLoad:
    """Tells whether a request is in progress in any process of this user on this machine.

    Each process locks one byte of the file while it serves a request, at a random offset: containers that share the
    file may have the same process ids. The kernel releases the lock however the process ends. Locks are only tested,
    never waited for. If the file cannot be opened, no request is ever seen. Not to be used across a fork.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path or LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._offset = secrets.randbelow(MAX_OFFSET)
        self._no_pause_until = 0.0

    def begin(self) -> None:
        """Mark a request of this process as in progress."""
        self._lock(os.F_TLOCK)

    def end(self) -> None:
        """Mark this process as idle."""
        self._lock(os.F_ULOCK)

    def _lock(self, how: int) -> None:
        if self._file is not None:
            os.lseek(self._file, self._offset, os.SEEK_SET)
            with contextlib.suppress(OSError):
                os.lockf(self._file, how, 1)

    def elsewhere(self) -> bool:
        """True if another process has a request in progress."""
        if self._file is None:
            return False
        os.lseek(self._file, 0, os.SEEK_SET)
        try:
            os.lockf(self._file, os.F_TEST, 0)
        except OSError:
            return True
        return False

    def pause(self) -> None:
        """Wait until no other process has a request in progress, but at most MAX_PAUSE_S."""
        began = time.monotonic()
        if began < self._no_pause_until:
            return
        while self.elsewhere():
            if time.monotonic() > began + MAX_PAUSE_S:
                self._no_pause_until = time.monotonic() + MAX_PAUSE_S
                return
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def pause_between_layers() -> None:
    """Pause this process before each layer of any network, forward and backward, while a request is in progress."""
    # Imported here, so that processes that only need ForegroundLoad start without torch.
    from torch import Tensor
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    foreground = ForegroundLoad()

    def before(*_: Any) -> None:
        foreground.pause()

    def after(_module: Any, _given: Any, answer: Any) -> None:
        if isinstance(answer, Tensor) and answer.requires_grad:
            answer.register_hook(before)  # type: ignore[no-untyped-call]

    register_module_forward_pre_hook(before)
    register_module_forward_hook(after)
