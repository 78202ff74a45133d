"""The click log's rows: the session of every annotator is a fold over them."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from rayapp.datastore.index import dumps, info_of
from rayapp.datastore.protocol import ClickEvent
from rayapp.errors import NotFound

_COLUMNS = "image_id, kind, payload, model, model_version, user, client_id, ts"


def append_event(db: sqlite3.Connection, event: ClickEvent) -> int:
    """Append; the sequence number. An event that is there already (same time, same content) keeps its number.

    Raises:
        NotFound: for an unknown image.
    """
    if not db.execute("SELECT 1 FROM image WHERE id = ?", (event.image_id,)).fetchone():
        raise NotFound(f"there is no image {event.image_id[:200]!r} to log an event of")
    row = (
        *(event.image_id, event.kind, dumps(event.payload), event.model, event.model_version),
        *(event.user, event.client_id, event.ts or time.time()),
    )
    if event.ts:
        # A caller that lost the answer sends the event again.
        found = db.execute(
            f"SELECT seq FROM event WHERE ({_COLUMNS}) IS (?, ?, ?, ?, ?, ?, ?, ?) AND image_id = ?",
            (*row, event.image_id),
        ).fetchone()
        if found:
            return int(found[0])
    seq = db.execute(f"INSERT INTO event({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
    assert seq is not None
    return seq


def read_event(db: sqlite3.Connection, seq: int) -> ClickEvent:
    """One event by its number. Raises NotFound."""
    row = db.execute(f"SELECT {_COLUMNS}, seq FROM event WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        raise NotFound(f"there is no event {seq} in the click log")
    return _event(row)


def read_events(db: sqlite3.Connection, image_id: str, user: str | None, after: int) -> list[ClickEvent]:
    """The image's events from behind `after`, of one user or of all."""
    rows = db.execute(
        f"SELECT {_COLUMNS}, seq FROM event WHERE image_id = ? AND seq > ? AND (? IS NULL OR user = ?) ORDER BY seq",
        (image_id, after, user, user),
    )
    return [_event(row) for row in rows]


def _event(row: tuple[Any, ...]) -> ClickEvent:
    image_id, kind, payload, model, version, user, client_id, ts, seq = row
    return ClickEvent(
        image_id=image_id,
        kind=kind,
        payload=info_of(payload),
        model=model,
        model_version=version,
        user=user,
        client_id=client_id,
        ts=ts,
        seq=seq,
    )
