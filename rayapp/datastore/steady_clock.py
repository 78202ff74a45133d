"""Wall-clock time without jumps, for leases: a clock that is set forwards ends none, set backwards prolongs none."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady_time() -> float:
    """Unix seconds as of the start of this process, advanced by its monotonic clock."""
    return _OFFSET + time.monotonic()
