"""The commit thread: what waits together is committed together, and what fails takes nothing along."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayapp.datastore.commit import GroupCommit
from rayapp.errors import BadRequest, Busy, Conflict


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE t(x)")
    yield connection
    connection.close()


def insert(x: int):  # type: ignore[no-untyped-def]
    return lambda db: db.execute("INSERT INTO t VALUES(?)", (x,)).rowcount


def test_changes_that_wait_together_are_one_transaction_and_published_in_order(db: sqlite3.Connection) -> None:
    commit = GroupCommit(db)
    gate, started = threading.Event(), threading.Event()
    statements: list[str] = []
    published: list[int] = []

    def block(_: sqlite3.Connection) -> None:
        started.set()
        gate.wait()

    first = threading.Thread(target=commit.do, args=(block,))
    first.start()
    started.wait()
    db.set_trace_callback(statements.append)
    savers = []
    for x in range(8):
        savers.append(
            threading.Thread(
                target=commit.do, args=(insert(x),), kwargs={"publish": lambda _, x=x: published.append(x)}
            )
        )
        savers[-1].start()
        while commit._queue.qsize() < x + 1:
            pass
    gate.set()
    for thread in (first, *savers):
        thread.join()
    commit.close()
    assert statements.count("COMMIT") == 2, "the one that blocked, and all the others"
    assert published == list(range(8))


def test_a_change_that_fails_is_undone_alone(db: sqlite3.Connection) -> None:
    commit = GroupCommit(db)

    def half(db: sqlite3.Connection) -> None:
        insert(1)(db)
        raise BadRequest("no")

    with pytest.raises(BadRequest):
        commit.do(half)
    commit.do(insert(2))
    commit.close()
    assert db.execute("SELECT x FROM t").fetchall() == [(2,)]


def test_a_disk_that_does_not_take_the_commit_is_busy_and_publishes_nothing(
    db: sqlite3.Connection, tmp_path: Path
) -> None:
    commit = GroupCommit(db)
    published: list[int] = []
    with pytest.raises(Busy, match="could not be written"):
        commit.do(insert(1), folders=[tmp_path / "gone"], publish=published.append)
    commit.do(insert(2))
    commit.close()
    assert (published, db.execute("SELECT x FROM t").fetchall()) == ([], [(2,)])


def test_after_closing_nothing_is_taken(db: sqlite3.Connection) -> None:
    commit = GroupCommit(db)
    commit.close()
    commit.close()
    with pytest.raises(Conflict, match="closed"):
        commit.do(insert(1))
