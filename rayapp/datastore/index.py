"""Index: the SQLite database `<studies>/.rayapp/index.db`, the authoritative record of everything acknowledged.

WAL mode with synchronous=FULL: a commit survives power loss, and readers see whole commits without waiting for the
writer. One connection writes (see `commit`), any number read. Counts and the `final` flag are maintained by triggers,
so that the status and the next image cost the same at any number of images.
"""

from __future__ import annotations

import json
import queue
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayapp.datastore.interfaces import Author, Info
from rayapp.datastore.revisions import FileStamp, RevisionFile
from rayapp.datastore.schema import CHANGES, SCHEMA, VERSION
from rayapp.errors import BadRequest, Conflict

REMOVED = "@removed-"
"""Separates the id of a removed image from a number, in the revisions' rows, once another image has that id."""
OF_REMOVED = "image_id > ? || '@removed-' AND image_id < ? || '@removed.'"
"""Condition that selects these rows; the id is given as two parameters."""
REPLACED = "image_replaced"
"""Key in the info of an image, and of its earlier labels: when another file was found under its name."""
_COMPUTED = ("unreadable", "strategy", "dice")
"""Keys of an image's info that concern its voxels or leases, besides those that begin with a score's name."""
QUARANTINE = "nobody"
"""Leaseholder of a quarantined (unreadable) image."""
MAX_WAL = 64 << 20
"""Size in bytes to which the write-ahead log is truncated after a long-running reader has let it grow."""
_JSON = json.JSONEncoder(allow_nan=False)


class Index:
    """The database: `writer` is used by one thread at a time, `reader()` lends a connection to any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the database, and migrate it from an earlier schema version.

        Raises:
            sqlite3.DatabaseError: if the file is damaged.
            Conflict: if its schema is newer than this version knows; the file is left unchanged.
        """
        self._path = path
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self.writer = _connect(path)
        try:
            self.writer.execute("PRAGMA journal_mode = WAL")
            self.writer.execute("PRAGMA synchronous = FULL")
            self.writer.execute(f"PRAGMA journal_size_limit = {MAX_WAL}")
            (version,) = self.writer.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise Conflict("this studies folder was used by a newer version of rayapp: upgrade rayapp to open it")
            if version and self.writer.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged index")
            for change in (SCHEMA, *CHANGES)[version:]:
                self.writer.executescript("BEGIN;" + change + "COMMIT;")
        except BaseException:
            self.writer.close()
            raise

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection that sees one consistent state per statement, or per transaction begun on it."""
        try:
            db = self._idle.get_nowait()
        except queue.Empty:
            db = _connect(self._path)
            db.execute("PRAGMA query_only = 1")
        try:
            yield db
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._idle.put(db)

    def close(self) -> None:
        """Close every connection that is not in use."""
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self.writer.close()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)


def json_text(info: Mapping[str, Any]) -> str:
    """JSON text in plain ASCII. Raises BadRequest for values that JSON cannot represent."""
    try:
        return _JSON.encode(dict(info))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the info must be valid JSON without NaN or infinity: {error}") from None


def meta(db: sqlite3.Connection, key: str) -> str | None:
    """A property of the store itself; None if it was never set."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Set a property of the store."""
    db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))


def insert_image(db: sqlite3.Connection, image_id: str, ext: str, info: Mapping[str, Any], staged: str | None) -> None:
    """Insert the image's row; an existing image gets the new extension and keeps its info.

    A new image with the name of a removed one does not inherit its history, which is kept under an id that no image has
    (`REMOVED`).
    """
    is_same = db.execute(
        "SELECT 1 FROM image WHERE id = :id UNION ALL SELECT 1 FROM vanished WHERE id = :id"
        " UNION ALL SELECT 1 FROM meta WHERE key = 'rebuilt' AND value = '1'",
        {"id": image_id},
    ).fetchone()
    if not is_same:
        db.execute("DELETE FROM image_file WHERE image_id = ?", (image_id,))
        if db.execute("SELECT 1 FROM revision WHERE image_id = ?", (image_id,)).fetchone():
            query = f"SELECT count(DISTINCT image_id) FROM revision WHERE {OF_REMOVED}"
            (earlier,) = db.execute(query, (image_id, image_id)).fetchone()
            name = f"{image_id}{REMOVED}{earlier + 1}"
            db.execute("UPDATE revision SET image_id = ? WHERE image_id = ?", (name, image_id))
    db.execute("DELETE FROM doomed WHERE image_id = ? AND tag = ''", (image_id,))
    db.execute(
        "INSERT INTO image(id, ext, info, added, served, staged) VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE"
        " SET ext = excluded.ext, staged = coalesce(excluded.staged, staged),"
        " info = json_set(info, '$.name', id || excluded.ext)",
        (image_id, ext, json_text(info), _integer(info.get("ts")), last_served(info), staged),
    )


def unplaced(db: sqlite3.Connection) -> set[str]:
    """Names of staged files of images that were added and do not have their own names yet."""
    rows = db.execute("SELECT staged FROM image JOIN doomed ON image_id = id AND tag = '' WHERE staged IS NOT NULL")
    return {staged for (staged,) in rows}


def last_served(info: Mapping[str, Any]) -> int:
    """The latest time at which any strategy handed out the image, in seconds since the epoch; 0 for never."""
    strategies = info.get("strategy")
    if not isinstance(strategies, dict):
        return 0
    return max((_integer(s.get("ts")) for s in strategies.values() if isinstance(s, dict)), default=0)


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 62 else 0


def put_label(
    db: sqlite3.Connection,
    image_id: str,
    tag: str,
    kept: RevisionFile,
    stamp: FileStamp,
    *,
    number: int,
    session: int,
    info: Mapping[str, Any],
) -> None:
    """Make a revision the current label under the tag."""
    db.execute("DELETE FROM doomed WHERE image_id = ? AND tag = ?", (image_id, tag))
    db.execute(
        "INSERT INTO label VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(image_id, tag) DO UPDATE SET"
        " ext = excluded.ext, info = excluded.info, number = excluded.number, sha = excluded.sha,"
        " size = excluded.size, mtime_ns = excluded.mtime_ns, session = excluded.session",
        (image_id, tag, kept.ext, json_text(info), number, kept.sha, stamp.size, stamp.mtime_ns, session),
    )


def add_revision(
    db: sqlite3.Connection,
    image_id: str,
    tag: str,
    kept: RevisionFile,
    stamp: FileStamp,
    *,
    author: Author,
    model_version: str | None,
    info: Mapping[str, Any],
    staged: str | None,
) -> int:
    """Record a revision whose parent is the current label. Returns its number."""
    (last,) = db.execute("SELECT max(number) FROM revision WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
    parent = db.execute("SELECT number FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
    number = (last or 0) + 1
    db.execute(
        "INSERT INTO revision VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(image_id, tag, number, kept.sha, kept.ext, stamp.size, stamp.mtime_ns, parent[0] if parent else None),
            *(stamp.mtime_ns / 1e9, author.user, author.client_id, model_version, json_text(info), staged),
        ),
    )
    return number


def reopened(db: sqlite3.Connection, since: int) -> tuple[list[str], int]:
    """Images whose final label was removed, in order.

    Args:
        db: a connection.
        since: position in that list up to which the caller has read; 0 for the start.

    Returns:
        (image ids, new position).
    """
    rows = db.execute("SELECT image_id, seq FROM reopened WHERE seq > ? ORDER BY seq", (since,)).fetchall()
    return [image_id for image_id, _ in rows], rows[-1][1] if rows else since


def update_image(db: sqlite3.Connection, image_id: str, info: Mapping[str, Any]) -> Info | None:
    """Merge keys into the image's info. Returns the merged info; None for an unknown image."""
    row = db.execute("SELECT info FROM image WHERE id = ?", (image_id,)).fetchone()
    if row is None:
        return None
    merged = {**info_of(row[0]), **info}
    db.execute("UPDATE image SET info = ?, served = ? WHERE id = ?", (json_text(merged), last_served(merged), image_id))
    return merged


def reopen(db: sqlite3.Connection, image_id: str) -> None:
    """Make caches in memory check again whether the image needs a label."""
    db.execute("INSERT INTO reopened(image_id) VALUES(?)", (image_id,))


def update_label(
    db: sqlite3.Connection, image_id: str, tag: str, info: Mapping[str, Any], *, without: Collection[str] = ()
) -> Info | None:
    """Merge keys into the label's info, and remove those in `without` that were there.

    Returns the merged info; None if there is no such label.
    """
    row = db.execute("SELECT info FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
    if row is None:
        return None
    merged = {**{key: value for key, value in info_of(row[0]).items() if key not in without}, **info}
    db.execute("UPDATE label SET info = ? WHERE image_id = ? AND tag = ?", (json_text(merged), image_id, tag))
    return merged


def delete_image(db: sqlite3.Connection, image_id: str) -> None:
    """Delete the rows of the image and of its labels."""
    db.execute("DELETE FROM label WHERE image_id = ?", (image_id,))
    db.execute("DELETE FROM image WHERE id = ?", (image_id,))


def forget_results(db: sqlite3.Connection, image_id: str) -> None:
    """Delete results computed from the image's voxels: its scores, also in its info, its features, and its
    quarantine.
    """
    scores = [name for (name,) in db.execute("SELECT name FROM score WHERE image_id = ?", (image_id,))]
    row = db.execute("SELECT info FROM image WHERE id = ?", (image_id,)).fetchone()
    if row is not None:
        computed = (*(f"{name}_" for name in scores),)
        info = {k: v for k, v in info_of(row[0]).items() if k not in _COMPUTED and not k.startswith(computed)}
        db.execute("UPDATE image SET info = ?, served = 0 WHERE id = ?", (json_text(info), image_id))
    reopen(db, image_id)  # the scores in memory
    for table in ("scored", "score", "feature"):
        db.execute(f"DELETE FROM {table} WHERE image_id = ?", (image_id,))
    db.execute("DELETE FROM lease WHERE image_id = ? AND holder = ?", (image_id, QUARANTINE))


def mark_replaced(db: sqlite3.Connection, image_id: str, ts: int) -> None:
    """Record that the image's file was replaced: delete results and leases, and mark its labels, which stay.

    Args:
        db: the writer connection.
        image_id: the image.
        ts: the time in seconds since the epoch.
    """
    forget_image(db, image_id)
    update_image(db, image_id, {REPLACED: ts})
    for (tag,) in db.execute("SELECT tag FROM label WHERE image_id = ?", (image_id,)).fetchall():
        update_label(db, image_id, tag, {REPLACED: ts})


def forget_vanished(db: sqlite3.Connection, image_id: str) -> None:
    """Delete what was kept of a vanished image when another one takes its name. Its revisions stay."""
    forget_image(db, image_id)
    for table, column in (("vanished", "id"), ("event", "image_id")):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (image_id,))


def forget_image(db: sqlite3.Connection, image_id: str) -> None:
    """Delete the results and any lease of an image that was deleted for good."""
    forget_results(db, image_id)
    db.execute("DELETE FROM lease WHERE image_id = ?", (image_id,))


def info_of(text: str) -> Info:
    """The dict in an info column."""
    info: Info = json.loads(text)
    return info
