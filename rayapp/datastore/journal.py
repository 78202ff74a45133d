"""Journal: what is only ever appended to a study set: clicks, and the records of jobs.

Any number of threads may call at once; whatever changes is committed by the one writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.events import append_event, read_event, read_events
from rayapp.datastore.index import Index
from rayapp.datastore.ledger import put_job, read_jobs
from rayapp.datastore.protocol import ClickEvent
from rayapp.datastore.worklist import renew
from rayapp.jobs.record import Job


class Journal:
    """The click log of a `Datastore`, and the `Ledger` of its jobs."""

    _index: Index
    _commit: GroupCommit

    def append_events(self, events: Sequence[ClickEvent]) -> list[int]:
        """See `Datastore`. Raises NotFound for an unknown image.

        An event with a time of its own is appended once, however often it is sent.
        """

        def apply(db: sqlite3.Connection) -> list[int]:
            for image_id in {event.image_id for event in events}:
                renew(db, image_id)
            return [append_event(db, event) for event in events]

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
        """See `rayapp.jobs.record.Ledger`."""
        with self._index.reader() as db:
            return read_jobs(db)

    def save_job(self, job: Job) -> None:
        """See `Ledger`."""
        self._commit.do(lambda db: put_job(db, job))

    def forget_jobs(self, ids: Sequence[str]) -> None:
        """See `Ledger`."""
        self._commit.do(lambda db: db.executemany("DELETE FROM job WHERE id = ?", [(i,) for i in ids]).rowcount)
