"""Journal: the click log, of which each annotator's session is a fold, and the job records of a study set.

Job records live in the index because a job belongs to a study set: they are then written by the single writer, and are
salvaged with the index if it is damaged. Thread-safe.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rayapp.datastore import leases
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.index import Index, info_of, json_text
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.job_record import Job, Progress, State
from rayapp.errors import NotFound
from rayapp.protocol import JobKind

_COLUMNS = "image_id, kind, payload, model, model_version, user, client_id, ts"


class Journal:
    """The click log of a `Datastore` and the `Ledger` of its jobs; a mixin of `LocalDatastore`."""

    _index: Index
    _commit: GroupCommit

    def append_events(self, events: Sequence[ClickEvent]) -> list[int]:
        """See `Datastore`. Raises NotFound for an unknown image.

        An event that carries its own time (`ts`) is appended only once, however often it is sent.
        """

        def apply(db: sqlite3.Connection) -> list[int]:
            for image_id in {event.image_id for event in events}:
                leases.renew(db, image_id)
            return [append_event(db, event) for event in events]

        return self._commit.do(apply)

    def append_turn(self, event: ClickEvent, *, opened: int, after: int) -> list[ClickEvent]:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> list[ClickEvent]:
            first = read_event(db, opened)
            if any(getattr(first, name) != getattr(event, name) for name in ("image_id", "user", "interaction")):
                raise NotFound("there is no such interaction any more: open one")
            newer = read_events(db, event.image_id, event.user, after)
            others = [each for each in newer if each.interaction == event.interaction]
            if others:
                return others
            leases.renew(db, event.image_id)
            return [replace(event, seq=append_event(db, event))]

        return self._commit.do(apply)

    def event(self, seq: int) -> ClickEvent:
        """See `Datastore`."""
        with self._index.reader() as db:
            return read_event(db, seq)

    def events(self, image_id: str, *, user: str | None = None, after: int = 0) -> list[ClickEvent]:
        """See `Datastore`."""
        with self._index.reader() as db:
            return read_events(db, image_id, user, after)

    def jobs(self) -> list[Job]:
        """See `rayapp.datastore.job_record.Ledger`."""
        with self._index.reader() as db:
            return read_jobs(db)

    def save_job(self, job: Job) -> None:
        """See `Ledger`."""
        self._commit.do(lambda db: put_job(db, job))

    def forget_jobs(self, ids: Sequence[str]) -> None:
        """See `Ledger`."""
        self._commit.do(lambda db: db.executemany("DELETE FROM job WHERE id = ?", [(i,) for i in ids]).rowcount)


def append_event(db: sqlite3.Connection, event: ClickEvent) -> int:
    """Append an event and return its sequence number.

    An event that is in the log already (same time and content) is not appended again; its number is returned.

    Raises:
        NotFound: for an unknown image.
    """
    if not db.execute("SELECT 1 FROM image WHERE id = ?", (event.image_id,)).fetchone():
        raise NotFound(f"no image {event.image_id[:200]!r} to log an event for: see the list of images")
    row = (
        *(event.image_id, event.kind, json_text(event.payload), event.model, event.model_version),
        *(event.user, event.client_id, event.ts or time.time()),
    )
    if event.ts:
        # A caller that did not receive the answer sends the event again.
        logged = db.execute(
            f"SELECT seq FROM event INDEXED BY event_ts WHERE image_id = ? AND ts = ?"
            f" AND ({_COLUMNS}) IS (?, ?, ?, ?, ?, ?, ?, ?)",
            (event.image_id, event.ts, *row),
        ).fetchone()
        if logged:
            return int(logged[0])
    seq = db.execute(f"INSERT INTO event({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
    assert seq is not None
    return seq


def read_event(db: sqlite3.Connection, seq: int) -> ClickEvent:
    """The event with this sequence number. Raises NotFound."""
    row = db.execute(f"SELECT {_COLUMNS}, seq FROM event WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        raise NotFound(f"the click log has no event {seq}")
    return _event(row)


def read_events(db: sqlite3.Connection, image_id: str, user: str | None, after: int) -> list[ClickEvent]:
    """The image's events with a sequence number above `after`, of one user or, with None, of all."""
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


def put_job(db: sqlite3.Connection, job: Job) -> None:
    """Insert or replace the record; a replaced one keeps its position in the order."""
    db.execute(
        "INSERT INTO job(id, record) VALUES(?, ?) ON CONFLICT(id) DO UPDATE SET record = excluded.record",
        (job.id, json_text(asdict(job))),
    )


def read_jobs(db: sqlite3.Connection) -> list[Job]:
    """All job records, oldest first."""
    return [_job(record) for (record,) in db.execute("SELECT record FROM job ORDER BY seq")]


def _job(text: str) -> Job:
    fields = json.loads(text)
    progress = fields.pop("progress")
    return Job(
        **{
            **fields,
            "kind": JobKind(fields["kind"]),
            "state": State(fields["state"]),
            "details": tuple(fields["details"]),
            "progress": Progress(**progress) if progress else None,
        }
    )
