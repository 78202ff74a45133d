"""Cores and memory available to this process. Imports no torch, for processes that must start fast."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process, as paths below `CGROUP`; a container shows its own as the root."""
MEMORY = ("memory.max", "memory.limit_in_bytes")
"""A group's limit in bytes, in version 2 and version 1 of control groups."""


def cores() -> int:
    """Number of cores that this process may use: those it may run on, or its control groups' share of them if lower."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min((quota for group in _groups("cpu") if (quota := _quota(group)) is not None), default=float(allowed))
    return max(1, min(allowed, math.ceil(quota)))


def _quota(group: Path) -> float | None:
    """Processor time that a group may take, in cores; None without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):  # of another version, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def memory() -> int:
    """Bytes of memory: the machine's, or the limit of its control groups if lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups("memory"):
        for name in MEMORY:
            with contextlib.suppress(OSError, ValueError):
                total = min(total, int((group / name).read_text()))
    return total


def _groups(controller: str) -> set[Path]:
    """Folders of the groups that limit this process: its own and those above, as of a service or a pod."""
    roots = {CGROUP, CGROUP / controller}
    found = set(roots)
    with contextlib.suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for root in roots if not controllers or controller in controllers.split(",") else ():
                below = (root / path.lstrip("/"), *(root / path.lstrip("/")).parents)
                found.update(folder for folder in below if folder.is_relative_to(root))
    return found
