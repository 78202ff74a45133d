"""GroupCommit: the one thread that writes to the index and to the published files.

Callers of any number hand in changes and wait; all changes that wait at the same moment become durable in one SQLite
transaction with one sync, and only then are published and answered, in the order of the commit. So eight savers pay
for one sync, and two saves of one label can never be published in the wrong order.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayapp.errors import Busy, Conflict

T = TypeVar("T")
BATCH = 256

log = logging.getLogger(__name__)


@dataclass
class _Change(Generic[T]):
    apply: Callable[[sqlite3.Connection], T]
    folders: frozenset[Path]
    publish: Callable[[T], None] | None
    answer: Future[T] = field(default_factory=Future)
    result: T | None = None
    error: Exception | None = None

    def attempt(self, db: sqlite3.Connection) -> None:
        """Apply within a savepoint, so that a change that fails takes nothing of its batch with it."""
        db.execute("SAVEPOINT change")
        try:
            self.result = self.apply(db)
        except Exception as error:
            self.error = disk_full() if isinstance(error, sqlite3.OperationalError) else error
            db.execute("ROLLBACK TO change")
        db.execute("RELEASE change")

    def finish(self) -> None:
        """Publish and answer, once the batch is durable."""
        try:
            if self.error is None and self.publish is not None:
                self.publish(self.result)  # type: ignore[arg-type]
        except Exception as error:
            self.error = error
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.result)  # type: ignore[arg-type]


class GroupCommit:
    """Runs changes on its own thread. `do` may be called from any thread but its own."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._queue: queue.SimpleQueue[_Change[Any] | None] = queue.SimpleQueue()
        self._open = True
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="datastore-commit", daemon=True)
        self._thread.start()

    def do(
        self,
        apply: Callable[[sqlite3.Connection], T],
        *,
        folders: Iterable[Path] = (),
        publish: Callable[[T], None] | None = None,
    ) -> T:
        """Sync `folders`, commit `apply(connection)`, call `publish` with its result, and return that result.

        Whatever `apply` raises is raised here, and the index is as it was.

        Raises:
            Busy: if the disk does not take the commit.
            Conflict: if the store was closed.
        """
        change = _Change(apply, frozenset(folders), publish)
        with self._gate:
            if not self._open:
                raise Conflict("the datastore is closed")
            self._queue.put(change)
        return change.answer.result()

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._gate:
            if not self._open:
                return
            self._open = False
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._queue.empty():
                # Nothing follows the None of `close`, and only this thread takes from the queue.
                if (change := self._queue.get()) is None:
                    self._queue.put(None)
                    break
                batch.append(change)
            self._commit(batch)

    def _commit(self, batch: list[_Change[Any]]) -> None:
        try:
            for folder in frozenset[Path]().union(*(change.folders for change in batch)):
                sync(folder)
            self._db.execute("BEGIN IMMEDIATE")
            for change in batch:
                change.attempt(self._db)
            self._db.execute("COMMIT")
        except Exception as error:
            log.error("the index did not take a commit: %s", type(error).__name__)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            for change in batch:
                change.answer.set_exception(disk_full())
            return
        for change in batch:
            change.finish()


def disk_full() -> Busy:
    """What to raise when the disk takes no more."""
    return Busy("the datastore could not write; is its disk full? Make room and try again")


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
