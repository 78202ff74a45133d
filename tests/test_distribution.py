"""Tests that share a server run in one worker, and what takes long begins first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distribution import FIRST, SERVER, group_of, rank_of

TESTS = Path(__file__).parent


def test_all_tests_on_the_shared_server_are_one_group_and_others_stay_with_their_file():
    assert group_of("contract/test_client.py", ["tmp_path", "server"]) == SERVER
    assert group_of("chaos/test_replica_kill.py", ["server"]) == SERVER
    assert group_of("contract/test_training.py", ["trainer"]) == "contract/test_training.py"


def test_what_takes_longest_begins_first():
    paths = ["test_geometry.py", "gateway/test_jobs.py", "chaos/test_replica_kill.py", "contract/test_training.py"]
    groups = [SERVER if "replica" in path else path for path in paths]
    ranks = [rank_of(path, group) for path, group in zip(paths, groups, strict=True)]
    assert sorted(ranks) == [ranks[2], ranks[3], ranks[1], ranks[0]]


@pytest.mark.parametrize("room", FIRST)
def test_the_rooms_that_begin_first_exist(room: str):
    assert (TESTS / room).is_dir()


def test_each_test_of_this_run_has_its_group(request: pytest.FixtureRequest):
    (mark,) = request.node.iter_markers("xdist_group")
    assert mark.args == ("test_distribution.py",)
