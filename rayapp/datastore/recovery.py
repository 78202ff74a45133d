"""Opening an index that may be damaged: the damaged file is renamed, and its readable rows are copied into a new index.

The scan that follows recovers the rest from `datastore_v2.json` and from the folder itself.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from rayapp.datastore.index import Index, salvage

NAME = "index.db"

log = logging.getLogger(__name__)


def open_index(root: Path) -> tuple[Index, bool]:
    """Open the index under `root`. Returns (index, True if it had to be rebuilt)."""
    path = root / NAME
    try:
        return Index(path), False
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, disk full, no permission: the file itself is not damaged
    broken = root / f"{NAME}.broken-{time.time_ns() // 1_000_000_000}"
    for suffix in ("", "-wal", "-shm"):
        side = root / (NAME + suffix)
        if side.exists():
            side.rename(broken.with_name(broken.name + suffix))
    index = Index(path)
    index.writer.execute("BEGIN")
    rows = salvage(broken, index.writer)
    index.writer.execute("COMMIT")
    log.error("the index was damaged and has been rebuilt with %d of its rows; it is kept as %s", rows, broken.name)
    return index, True
