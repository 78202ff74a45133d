"""GroupCommit: the single writer thread of the index and of the published files.

Any number of callers submit changes and wait. All changes pending at the same moment become durable in one SQLite
transaction with one sync; only then are they published and answered, in commit order. Eight concurrent saves therefore
share one sync, and two saves of one label can never be published in the wrong order.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import queue
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayapp.datastore.index import meta, set_meta
from rayapp.errors import Busy, Conflict
from rayapp.files.durable import disk_error, sync

T = TypeVar("T")
BATCH = 256
"""Maximum number of changes per commit."""
CHUNK = 5000
"""Maximum number of images or labels that a scan records in one change."""
OWNER = "owner"
"""Property of the index: name of the process that may change it."""
REPLACED = "another server has opened the studies folder since and this one ends: send it again"
EXIT_STATUS = 70
"""Exit status after a failure of the writer thread: EX_SOFTWARE of sysexits.h, an internal error."""

_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
"""The system's error for each result code of SQLite."""
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

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
        """Apply the change within a savepoint, so that a change that fails leaves the rest of its batch intact."""
        db.execute("SAVEPOINT change")
        try:
            self.result = self.apply(db)
        except Exception as error:
            expected = (FileNotFoundError, FileExistsError)
            failed = isinstance(error, (sqlite3.OperationalError, OSError)) and not isinstance(error, expected)
            self.error = commit_error(error, folder_of(db)) if failed else error
            db.execute("ROLLBACK TO change")
        db.execute("RELEASE change")

    def finish(self) -> None:
        """Publish and resolve the future, once the batch is durable."""
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
    """Runs changes on its own thread. `do` may be called from any other thread.

    After `claim`, once another process has claimed the index, nothing is changed or published any more and this process
    ends: see `rayapp.datastore.claim`.
    """

    _name: str | None = None

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
        """Run a change durably: sync `folders`, commit `apply`, then publish its result.

        Args:
            apply: makes the change on the writer connection. Whatever it raises is raised here and rolls the change
                back.
            folders: folders whose entries must be durable before the commit.
            publish: makes the committed change visible, for example by renaming a file into place.

        Returns:
            The result of `apply`.

        Raises:
            Busy: if the commit could not be written to disk.
            Conflict: if the store is closed.
        """
        change = _Change(apply, frozenset(folders), publish)
        with self._gate:
            if not self._open:
                raise Conflict("the datastore is closed")
            self._queue.put(change)
        return change.answer.result()

    def claim(self) -> None:
        """Put a name of this process's own into the index; whoever did so before can change nothing any more."""
        name = secrets.token_hex(8)
        self.do(lambda db: set_meta(db, OWNER, name))
        self._name = name

    def close(self) -> None:
        """Finish the pending changes, then stop the thread."""
        with self._gate:
            if not self._open:
                return
            self._open = False
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            # Without this thread every caller would wait for ever: end the process, so that it is restarted.
            log.critical("the datastore's writer thread failed; ending the process: %s", type(error).__name__)
            end_process()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._queue.empty():
                # None from `close` is always last, and only this thread takes from the queue.
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
            if self._replaced():
                raise Conflict(REPLACED)
            for change in batch:
                change.attempt(self._db)
            self._db.execute("COMMIT")
        except Exception as error:
            log.error("a commit to the index failed: %s", type(error).__name__)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            told = error if isinstance(error, Conflict) else commit_error(error, folder_of(self._db))
            for change in batch:
                change.answer.set_exception(told)
            if isinstance(error, Conflict):
                end_process()
            return
        if self._replaced():  # what is committed, the other one publishes; a file from here could replace a newer one
            for change in batch:
                change.answer.set_exception(Conflict(REPLACED))
            end_process()
            return
        for change in batch:
            change.finish()

    def _replaced(self) -> bool:
        """True once another process has put its name into the index."""
        return self._name is not None and meta(self._db, OWNER) != self._name


def end_process() -> None:
    """End this process at once; acknowledged changes are durable."""
    os._exit(EXIT_STATUS)


def folder_of(db: sqlite3.Connection) -> Path | None:
    """The folder that a database's file is in; None if SQLite cannot say."""
    try:
        return Path(db.execute("PRAGMA database_list").fetchone()[2]).parent
    except sqlite3.Error:
        return None


def commit_error(error: Exception, folder: Path | None) -> Busy:
    """The error to raise when a commit fails, with the reason that SQLite or the system gives.

    SQLite reports almost anything as an error of the disk: then the file system of the folder is asked.
    """
    if isinstance(error, OSError):
        return disk_error(error)
    # The low byte of an extended result code is the result code itself.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    if code in _LOCKED:
        return Busy("another program has locked .rayapp/index.db: close it, then try again")
    reason = _OF_SQLITE.get(int(code), 0)
    if reason in (errno.EIO, errno.EACCES) and folder is not None:
        reason = disk_state(folder) or reason
    return disk_error(OSError(reason, str(error)))


def disk_state(folder: Path, needed: int = 1) -> int | None:
    """The system's error for a file system that is read-only, or has fewer bytes than needed left; else None."""
    try:
        status = os.statvfs(folder)
    except OSError as error:
        return error.errno
    if status.f_flag & os.ST_RDONLY:
        return errno.EROFS
    # Some file systems in user space report no blocks at all.
    return errno.ENOSPC if status.f_blocks and status.f_bavail * status.f_frsize < needed else None


def chunks(items: list[str]) -> Iterable[list[str]]:
    """The items in parts of at most `CHUNK`, each for one commit."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk
