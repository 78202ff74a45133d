"""The index of a studies folder, opened by another process than its server: read-only, or exclusively."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rayapp.datastore.claim import BEAT, LOCK
from rayapp.datastore.schema import VERSION
from rayapp.errors import Conflict, NotFound

HIDDEN = ".rayapp"


@contextmanager
def reading(studies: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection, also while a server runs.

    Raises:
        NotFound: no server has ever opened the folder.
        Conflict: its schema is not this version's.
    """
    path = studies / HIDDEN / "index.db"
    if not path.is_file():
        raise NotFound("the studies folder has no .rayapp/index.db: no server has opened it yet, so check the path")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise Conflict("the index is of another version of rayapp: start a server of this version once, then retry")
        yield db


@contextmanager
def alone(studies: Path) -> Iterator[None]:
    """Keep servers from opening the folder within the block.

    Raises:
        Conflict: a server has it open.
    """
    lock = FileLock(studies / HIDDEN / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict("a server has the studies folder open: stop it first") from None
    try:
        (studies / HIDDEN / BEAT).unlink(missing_ok=True)  # of a server that crashed: nobody is to think this is it
        yield
    finally:
        lock.release()
