"""Repair: on opening, finishes what a crash left committed but not durably published or removed."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.image_names import label_name
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import Index
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore, delete
from rayapp.files.durable import sync

log = logging.getLogger(__name__)


class Repair:
    """One repair of a studies folder. A label that cannot be repaired is logged and left for an operator."""

    def __init__(
        self, studies: Path, *, index: Index, commit: GroupCommit, files: RevisionStore, source: ImageSource
    ) -> None:
        self._labels = studies / folder_scan.LABELS
        self._index = index
        self._commit = commit
        self._files = files
        self._source = source

    def run(self, session: int) -> None:
        """Publish committed labels and finish removals.

        Args:
            session: number of the session that crashed; labels saved in it or later are checked.
        """
        with self._index.reader() as db:
            rows = db.execute(
                "SELECT image_id, tag, ext, sha, size, mtime_ns, number FROM label WHERE session >= ?", (session,)
            ).fetchall()
            for row in rows:
                sha = row[3]
                try:
                    self._publish(db, *row)
                except OSError as error:
                    log.error("revision %s could not be published: %s", sha[:12], error.strerror)
            self._finish_removals(db)
        self._commit.do(lambda db: db.execute("DELETE FROM doomed").rowcount)
        for tag in folder_scan.tags(self._labels):
            sync(self._labels / tag)
        sync(self._labels)

    def _publish(self, db: sqlite3.Connection, *label: Any) -> None:
        image_id, tag, ext, sha, size, mtime_ns, number = label
        earlier = db.execute(
            "SELECT ext, size, mtime_ns FROM revision WHERE image_id = ? AND tag = ? AND number < ?",
            (image_id, tag, number),
        ).fetchall()
        # Earlier revisions that are still published. A file that is neither these nor the label is an edit.
        outdated = {old for old, *stamp in earlier if self._is_published(tag, label_name(image_id, old), *stamp)}
        path = self._labels / tag / label_name(image_id, ext)
        if ext in outdated or not path.exists():
            kept = RevisionFile(sha=sha, ext=ext, size=size, path=self._files.path(sha, ext))
            if not self._files.is_intact(kept):
                log.error("revision %s is missing or damaged; its label is not published", sha[:12])
                return
            staged, _ = self._files.copy(kept, mtime_ns)
            path.parent.mkdir(exist_ok=True)
            staged.rename(path)
        for old in outdated - {ext}:
            (self._labels / tag / label_name(image_id, old)).unlink()

    def _finish_removals(self, db: sqlite3.Connection) -> None:
        images = db.execute(
            "SELECT image_id, ext FROM doomed WHERE tag = '' AND image_id NOT IN (SELECT id FROM image)"
        ).fetchall()
        for image_id, ext in images:
            delete(self._source.path(image_id, ext))
        published = db.execute(
            "SELECT r.image_id, r.tag, r.ext, r.size, r.mtime_ns FROM revision AS r JOIN doomed USING(image_id, tag)"
            " WHERE (r.image_id, r.tag) NOT IN (SELECT image_id, tag FROM label)"
        ).fetchall()
        for image_id, tag, ext, *stamp in published:
            if self._is_published(tag, label_name(image_id, ext), *stamp):
                (self._labels / tag / label_name(image_id, ext)).unlink()

    def _is_published(self, tag: str, name: str, size: int, mtime_ns: int) -> bool:
        return FileStamp.of(self._labels / tag / name) == FileStamp(size=size, mtime_ns=mtime_ns)
