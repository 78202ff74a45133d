"""The order of the tests: the longest first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distribution import FIRST, rank_of

TESTS = Path(__file__).parent


def test_what_takes_longest_begins_first():
    paths = ["test_geometry.py", "gateway/test_jobs.py", "chaos/test_replica_kill.py", "contract/test_training.py"]
    assert sorted(paths, key=rank_of) == paths[::-1]


@pytest.mark.parametrize("room", FIRST)
def test_the_rooms_that_begin_first_exist(room: str):
    assert (TESTS / room).is_dir()
