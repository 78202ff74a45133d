"""How the tests are spread over the workers of pytest-xdist: `--dist loadgroup --no-loadscope-reorder` of the Makefile.

A file's tests stay together, for the fixtures of the file. All tests on the server that they share are one group, so
that only one worker starts it. What takes longest comes first: nothing long is then left for one worker at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

SERVER = "server"
"""The fixture that starts a server once for each worker that needs it."""
FIRST = ("contract", "chaos", "cluster", "training", "inference", "gateway")
"""Rooms whose tests take longest, the longest first."""


def group_of(path: str, fixtures: Sequence[str]) -> str:
    """The group of tests that one worker runs.

    Args:
        path: Path of the test's file below `tests`.
        fixtures: Names of all fixtures that the test uses.
    """
    return SERVER if SERVER in fixtures else path


def rank_of(path: str, group: str) -> int:
    """The place of a test in the order, from 0; tests of the same place keep the order in which they were found."""
    room = path.partition("/")[0]
    return 0 if group == SERVER else 1 + (FIRST.index(room) if room in FIRST else len(FIRST))
