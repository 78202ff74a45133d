"""The index at any size: frequent questions are answered from its indexes, and its log does not grow without bound."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore import index as indexes
from rayapp.datastore import leases
from rayapp.datastore.archive_sender import LabelSender
from rayapp.datastore.index import Index
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import save

TABLES = ("image", "label", "event", "revision", "scored", "lease", "score", "feature", "reopened", "vanished")


def test_the_log_that_grew_beside_a_long_reader_is_cut_once_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "MAX_WAL", 1 << 20)
    index, log = Index(tmp_path / "index.db"), tmp_path / "index.db-wal"
    texts = iter(range(10**9))

    def write() -> None:
        index.writer.execute("REPLACE INTO meta VALUES('k', ?)", (f"{next(texts)}" * 10_000,))

    write()
    with index.reader() as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM meta").fetchall()
        while log.stat().st_size < 8 << 20:
            write()
    for _ in range(3):
        write()
    assert log.stat().st_size <= 1 << 20
    index.close()


class Plans:
    """The connections of a store, which note what they are asked to do."""

    def __init__(self, store: LocalDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._index, self.asked = store._index, list[str]()
        self._index.writer.set_trace_callback(self.asked.append)
        reader = self._index.reader

        @contextmanager
        def traced() -> Iterator[sqlite3.Connection]:
            with reader() as db:
                db.set_trace_callback(self.asked.append)
                try:
                    yield db
                finally:
                    db.set_trace_callback(None)

        monkeypatch.setattr(self._index, "reader", traced)

    def scans(self) -> list[str]:
        """The steps of their plans that go through a whole table."""
        db = sqlite3.connect(self._index._path)
        try:
            asked = [sql for sql in self.asked if sql.startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))]
            assert asked
            steps = [row[3] for sql in asked for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
        finally:
            db.close()
        return [step for step in steps if step in {f"SCAN {table}" for table in TABLES}]


CALLS: dict[str, Callable[[LocalDatastore], Any]] = {
    "the next image": lambda store: store.unlabeled(holder="ann"),
    "the last image": lambda store: store.unlabeled(order="last", holder="ann"),
    "handing an image out": lambda store: store.serve_next("ct_b", "first", client_id=None, ts=1, holder="ann"),
    "one that is not scored": lambda store: store.unscored("run", limit=1),
    "a label": lambda store: store.label("ct_a", "final"),
    "the labels of an image": lambda store: store.labels("ct_a"),
    "the history of a label": lambda store: store.revisions("ct_a", "final"),
    "a click": lambda store: store.append_events([ClickEvent(image_id="ct_a", kind="click", payload={}, ts=1.0)]),
    "clicks on an image": lambda store: store.events("ct_a", user="ann"),
    "a save": lambda store: save(store, "ct_a", body=b"again"),
    "the status": lambda store: store.status(),
    "the next label to send": lambda store: LabelSender(
        index=store._index, commit=store._commit, send=lambda _: None, touched=lambda: None
    ).unsent(),
    "labels that wait for the archive": lambda store: LabelSender(
        index=store._index, commit=store._commit, send=lambda _: None, touched=lambda: None
    ).status(),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_asked_often_goes_through_no_whole_table(
    plain: LocalDatastore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(plain, "ct_a")
    plain._commit.do(lambda db: leases.grant(db, "ct_b", "ben"))
    plans = Plans(plain, monkeypatch)
    CALLS[call](plain)
    assert plans.scans() == []
