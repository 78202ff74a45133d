"""Priority: work that gives way to whoever else wants the processor."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """Let this thread, and those it starts, compute only when nobody else wants to."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
