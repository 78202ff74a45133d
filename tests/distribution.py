"""The order of the tests and their distribution over the workers of pytest-xdist.

A file's tests stay together, for the fixtures of the file, and files that use the same server stay together too: it is
then started once. What takes longest comes first: nothing long is then left for one worker at the end. The Makefile's
`--dist loadfile --no-loadscope-reorder` is needed for both.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

FIRST = ("contract", "chaos", "cluster", "training", "inference", "gateway")
"""Rooms whose tests take longest, the longest first."""
TOGETHER = {
    "server": (
        "contract/test_client.py",
        "contract/test_commands.py",
        "contract/test_monailabel_client.py",
        "contract/test_without_a_viewer.py",
    ),
    "ray_node": (
        "datastore/test_actor.py",
        "datastore/test_journal.py",
        "datastore/test_local.py",
        "datastore/test_own.py",
    ),
}
"""Files below `tests` that share a fixture which takes long to set up, by the fixture's name."""
_FIXTURE = {path: fixture for fixture, paths in TOGETHER.items() for path in paths}


def rank_of(path: str) -> int:
    """The place of a test in the order, from 0; tests of the same place keep the order in which they were found.

    Args:
        path: Path of the test's file below `tests`.
    """
    room = path.partition("/")[0]
    return FIRST.index(room) if room in FIRST else len(FIRST)


def group_of(path: str) -> str:
    """The name of the group of tests that one worker runs: a fixture's, or the file's own.

    Args:
        path: Path of the test's file below `tests`.
    """
    return _FIXTURE.get(path, path)


class GroupScheduling(LoadFileScheduling):
    """Hands out the tests by `group_of`."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(super()._split_scope(nodeid).removeprefix("tests/"))
