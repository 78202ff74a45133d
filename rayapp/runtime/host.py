"""Cores and memory available to this process. Imports no torch, for processes that must start fast."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMORY = ("memory.max", "memory/memory.limit_in_bytes")
"""The container's limit in bytes, in version 2 and version 1 of control groups."""


def cores() -> int:
    """Number of cores that this process may use: those it may run on, or the container's share of them if lower."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _quota()
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def _quota() -> float | None:
    """Processor time that the container may take, in cores; None without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (CGROUP / name).read_text().split())
        except (OSError, ValueError):  # of another version, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def memory() -> int:
    """Bytes of memory: the machine's, or the container's limit if lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in MEMORY:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int((CGROUP / name).read_text()))
    return total
