"""The order of the tests: the longest first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distribution import FIRST, TOGETHER, GroupScheduling, rank_of

TESTS = Path(__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
REQUESTED_AS = {"server": ("tests", {"server"}), "ray_node": ("tests/datastore", {"ray_node", "store"})}
"""Folder of each shared fixture's conftest, and the fixtures there by which tests request it."""


def test_what_takes_longest_begins_first():
    paths = ["test_geometry.py", "gateway/test_jobs.py", "chaos/test_replica_kill.py", "contract/test_training.py"]
    assert sorted(paths, key=rank_of) == paths[::-1]


@pytest.mark.parametrize("room", FIRST)
def test_the_rooms_that_begin_first_exist(room: str):
    assert (TESTS / room).is_dir()


def parameters(file: Path) -> Iterator[set[str]]:
    """Names of the parameters of each test and fixture of a file, without those that are fixtures of the file."""
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, FUNCTIONS)]
    fixtures = {each.name for each in functions if "fixture" in "".join(map(ast.unparse, each.decorator_list))}
    for each in functions:
        if each.name.startswith("test_") or each.name in fixtures:
            yield {argument.arg for argument in each.args.args} - fixtures


@pytest.mark.parametrize("fixture", TOGETHER)
def test_all_files_that_share_a_fixture_are_named(fixture: str):
    folder, names = REQUESTED_AS[fixture]
    users = {
        file.relative_to(TESTS).as_posix()
        for file in (TESTS.parent / folder).rglob("test_*.py")
        if any(found & names for found in parameters(file))
    }
    assert users == set(TOGETHER[fixture])


def test_one_worker_runs_all_files_that_share_a_server():
    schedule = GroupScheduling.__new__(GroupScheduling)  # without workers
    tests = [f"tests/{path}::test_it[a::b]" for path in TOGETHER["server"]]
    assert {schedule._split_scope(test) for test in tests} == {"server"}
    assert schedule._split_scope("tests/gateway/test_jobs.py::test_it") == "gateway/test_jobs.py"
