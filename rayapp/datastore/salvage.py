"""Salvage: reads the rows of a damaged index around its bad pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

TABLES = (
    *("revision", "event", "image", "image_file", "label", "vanished", "job", "scored", "score", "feature"),
    *("segmentation", "doomed", "lease"),
)
SPLITS = 20_000
"""Maximum number of ranges that are split in halves and read again; a bad page costs about one per row it held."""

Row = tuple[Any, ...]


def salvage(broken: Path, db: sqlite3.Connection) -> int:
    """Copy the readable rows of a damaged index into a new one.

    Args:
        broken: the damaged file.
        db: a connection to the new index, within a transaction.

    Returns:
        The number of rows copied.
    """
    rows = 0
    with closing(sqlite3.connect(broken, isolation_level=None, timeout=30)) as source:
        for table in TABLES:
            for row in _readable(source, table):
                places = ", ".join("?" * len(row))
                rows += db.execute(f"INSERT OR IGNORE INTO {table} VALUES({places})", row).rowcount
    db.execute("DELETE FROM label WHERE image_id NOT IN (SELECT id FROM image)")
    db.execute("UPDATE image SET final = EXISTS (SELECT 1 FROM label WHERE image_id = id AND tag = 'final')")
    return rows


def _readable(source: sqlite3.Connection, table: str) -> Iterator[Row]:
    """The readable rows of a table, some possibly twice: from both ends up to a bad page, then those in between."""
    try:
        yield from source.execute(f"SELECT * FROM {table}")
        return
    except sqlite3.DatabaseError:
        pass
    with suppress(sqlite3.DatabaseError):
        order = ", ".join(f"{column} DESC" for column in _key(source, table))
        yield from source.execute(f"SELECT * FROM {table} ORDER BY {order}")
        return
    with suppress(sqlite3.DatabaseError):
        yield from _between_bad_pages(source, table)


def _key(source: sqlite3.Connection, table: str) -> list[str]:
    """Columns in whose order the table is stored."""
    columns = source.execute(f"PRAGMA table_info({table})").fetchall()
    try:
        source.execute(f"SELECT rowid FROM {table} LIMIT 0")
        return ["rowid"]
    except sqlite3.OperationalError:  # a table WITHOUT ROWID is stored by its primary key
        return [name for _, name, *_, place in sorted(columns, key=lambda column: column[5]) if place]


def _between_bad_pages(source: sqlite3.Connection, table: str) -> Iterator[Row]:
    """Rows by ranges of the row id; a range with a bad page is split in halves."""
    first, last = _end(source, table, "ASC"), _end(source, table, "DESC")
    if first is None or last is None:
        return
    ranges, splits = [(first, last)], 0
    while ranges:
        low, high = ranges.pop()
        try:
            yield from source.execute(f"SELECT * FROM {table} WHERE rowid BETWEEN ? AND ?", (low, high)).fetchall()
        except sqlite3.DatabaseError:
            splits += 1
            if low == high or splits > SPLITS:
                continue
            middle = (low + high) // 2
            ranges += [(middle + 1, high), (low, middle)]


def _end(source: sqlite3.Connection, table: str, order: str) -> int | None:
    """The first or last row id; None for a table without row ids, or if that end is damaged."""
    try:
        row = source.execute(f"SELECT rowid FROM {table} ORDER BY rowid {order} LIMIT 1").fetchone()
    except sqlite3.DatabaseError:
        return None
    return None if row is None else int(row[0])
