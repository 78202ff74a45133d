"""Opening an index that may be damaged: its readable rows are copied into a new index, which then takes its place.

The new index is built beside the damaged one and renamed last, so that a crash at any moment leaves either to start
over with. The scan that follows recovers the rest from `datastore_v2.json` and from the folder itself.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from rayapp.datastore.index import Index, meta, set_meta
from rayapp.datastore.salvage import salvage
from rayapp.files.durable import sync

NAME = "index.db"
FRESH = NAME + ".new"
REBUILT = "rebuilt"
"""Property of a rebuilt index that stays set until the scan that completes it has finished."""
_SIDES = ("", "-wal", "-shm")

log = logging.getLogger(__name__)


def open_index(root: Path) -> tuple[Index, bool]:
    """Open the index under `root`.

    Returns:
        (index, True if it was rebuilt and `complete` was not called since).
    """
    path, fresh = root / NAME, root / FRESH
    if path.exists():
        _delete(fresh)  # left by an interrupted rebuild
    elif fresh.exists():
        fresh.rename(path)  # a rebuild was interrupted between its two renames
    try:
        index = Index(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, disk full, no permission: the file itself is not damaged
        _rebuild(root)
        index = Index(path)
    return index, meta(index.writer, REBUILT) == "1"


def complete(db: sqlite3.Connection) -> None:
    """Mark a rebuilt index as completed from the folder and the document; called within a change."""
    set_meta(db, REBUILT, "0")


def _rebuild(root: Path) -> None:
    path, fresh = root / NAME, root / FRESH
    _delete(fresh)
    with closing(Index(fresh)) as index:
        index.writer.execute("BEGIN")
        rows = salvage(path, index.writer)
        set_meta(index.writer, REBUILT, "1")
        index.writer.execute("COMMIT")
        index.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sync(fresh)
    broken = f"{NAME}.broken-{time.time_ns() // 1_000_000_000}"
    for suffix in reversed(_SIDES):
        side = root / (NAME + suffix)
        if side.exists():
            side.rename(root / (broken + suffix))
    fresh.rename(path)
    sync(root)
    log.error("the index was damaged and has been rebuilt with %d of its rows; it is kept as %s", rows, broken)


def _delete(path: Path) -> None:
    for suffix in _SIDES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
