"""The job rows of the index: a job's record as JSON, in the order the jobs were submitted.

They lie here, and not in a file of the jobs actor's, because a job belongs to a study set: what trains on labels is
recorded by the one writer, in the one file, that survives power loss and is salvaged when it is damaged.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict

from rayapp.datastore.index import dumps
from rayapp.jobs.record import Job, Kind, State
from rayapp.training.task import Progress


def put_job(db: sqlite3.Connection, job: Job) -> None:
    """Insert or replace the record; a job keeps its place."""
    db.execute(
        "INSERT INTO job(id, record) VALUES(?, ?) ON CONFLICT(id) DO UPDATE SET record = excluded.record",
        (job.id, dumps(asdict(job))),
    )


def read_jobs(db: sqlite3.Connection) -> list[Job]:
    """All, oldest first."""
    return [_job(record) for (record,) in db.execute("SELECT record FROM job ORDER BY seq")]


def _job(text: str) -> Job:
    fields = json.loads(text)
    progress = fields.pop("progress")
    return Job(
        **{
            **fields,
            "kind": Kind(fields["kind"]),
            "state": State(fields["state"]),
            "details": tuple(fields["details"]),
            "progress": Progress(**progress) if progress else None,
        }
    )
