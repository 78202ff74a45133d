"""Opening the index when it may be damaged: the broken one is kept aside, and what can be read of it is carried over.

The rest comes back from `datastore_v2.json` and from the folder itself, by the scan that follows.
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
    """(the index under `root`, whether it had to be rebuilt)."""
    path = root / NAME
    try:
        return Index(path), False
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, no space, no permission: nothing is wrong with the file itself
    broken = root / f"{NAME}.broken-{time.time_ns() // 1_000_000_000}"
    for suffix in ("", "-wal", "-shm"):
        side = root / (NAME + suffix)
        if side.exists():
            side.rename(broken.with_name(broken.name + suffix))
    index = Index(path)
    index.writer.execute("BEGIN")
    rows = salvage(broken, index.writer)
    index.writer.execute("COMMIT")
    log.error("the index was damaged and is kept aside as %s; %d rows of it were saved", broken.name, rows)
    return index, True
