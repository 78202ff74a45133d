"""The order of the tests, for the workers of pytest-xdist: `--dist loadfile --no-loadscope-reorder` of the Makefile.

A file's tests stay together, for the fixtures of the file. What takes longest comes first: nothing long is then left
for one worker at the end.
"""

from __future__ import annotations

FIRST = ("contract", "chaos", "cluster", "training", "inference", "gateway")
"""Rooms whose tests take longest, the longest first."""


def rank_of(path: str) -> int:
    """The place of a test in the order, from 0; tests of the same place keep the order in which they were found.

    Args:
        path: Path of the test's file below `tests`.
    """
    room = path.partition("/")[0]
    return FIRST.index(room) if room in FIRST else len(FIRST)
