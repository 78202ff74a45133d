"""Repair: completes what was committed but not published or removed because of a crash or a disk error.

The index is authoritative: a label is saved even if its file could not be replaced. Until the file is published the
label is `late`: readers get its revision, and scans ignore its file.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.image_files import forget_file, is_as_recorded
from rayapp.datastore.image_names import label_name
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import Index, info_of, put_label
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore, delete, is_same, link_or_copy
from rayapp.files.durable import sync

_OF = "image_id = ? AND tag = ?"

log = logging.getLogger(__name__)


Key = tuple[str, str]
"""Image id and tag; the tag of an image's own file is ""."""


class Repair:
    """Pending publications and removals of a studies folder.

    Call `run` and `catch_up` from any thread but the commit thread. A label that cannot be repaired is logged and left
    for an operator.

    Attributes:
        late: labels whose publication or removal failed, and images whose removal failed.
    """

    def __init__(
        self, studies: Path, *, index: Index, commit: GroupCommit, files: RevisionStore, source: ImageSource
    ) -> None:
        self._labels = studies / folder_scan.LABELS
        self._index = index
        self._commit = commit
        self._files = files
        self._source = source
        self.late: set[Key] = set()
        self._session = 0

    def run(self, session: int) -> None:
        """After a crash: publish committed labels and finish removals.

        Args:
            session: number of the session that crashed; labels saved in it or later are checked.
        """
        self._session = session
        with self._index.reader() as db:
            keys = db.execute("SELECT image_id, tag FROM label WHERE session >= ?", (session,)).fetchall()
            keys += db.execute("SELECT DISTINCT image_id, tag FROM doomed").fetchall()
        self._commit.do(lambda db: self._finish_all(db, keys))
        for tag in folder_scan.tags(self._labels):
            sync(self._labels / tag)
        sync(self._labels)

    def catch_up(self) -> None:
        """Retry pending publications and removals."""
        if self.late:
            self._commit.do(lambda db: self._finish_all(db, sorted(self.late)))

    def postpone(self, image_id: str, tag: str, error: OSError) -> None:
        """Note that a committed label or removal could not be published."""
        self.late.add((image_id, tag))
        log.error("a change is saved, but its file could not be replaced and is replaced later: %s", error.strerror)

    def place_image(self, staged: Path, target: Path) -> None:
        """Rename a committed image's staged file to its name in the studies folder, durably.

        Raises:
            FileExistsError: another file has that name.
        """
        if not (target.exists() and is_same(staged, target)):
            link_or_copy(staged, target)
        sync(target.parent)

    def _finish_all(self, db: sqlite3.Connection, keys: Iterable[Key]) -> None:
        for image_id, tag in keys:
            try:
                self._finish(db, image_id, tag)
            except OSError as error:
                self.postpone(image_id, tag, error)
            else:
                self.late.discard((image_id, tag))

    def _finish(self, db: sqlite3.Connection, image_id: str, tag: str) -> None:
        doomed = [row[0] for row in db.execute(f"SELECT ext FROM doomed WHERE {_OF}", (image_id, tag))]
        row = db.execute(f"SELECT ext, sha, size, mtime_ns, number FROM label WHERE {_OF}", (image_id, tag)).fetchone()
        if row is not None:
            self._publish(db, image_id, tag, *row)
        elif tag:
            self._unpublish(db, image_id, tag, doomed)
        elif added := db.execute("SELECT ext, staged FROM image WHERE id = ?", (image_id,)).fetchone():
            if added[1] and (staged := self._files.staging / added[1]).exists():
                with suppress(FileExistsError):  # placed before, or another program's
                    self.place_image(staged, self._source.path(image_id, added[0]))
        else:
            for ext in doomed:
                path = self._source.path(image_id, ext)
                if is_as_recorded(db, image_id, path):  # else it is another image, which was put there since
                    delete(path)
                sync(path.parent)  # before the row that would repeat it is gone
            forget_file(db, image_id)
        db.execute(f"DELETE FROM doomed WHERE {_OF}", (image_id, tag))

    def _publish(
        self, db: sqlite3.Connection, image_id: str, tag: str, ext: str, sha: str, size: int, mtime_ns: int, number: int
    ) -> None:
        earlier = db.execute(
            f"SELECT ext, size, mtime_ns FROM revision WHERE {_OF} AND number < ?", (image_id, tag, number)
        ).fetchall()
        # Earlier revisions that are still published. A file that is neither these nor the label is an edit.
        outdated = {old for old, *stamp in earlier if self._is_published(tag, label_name(image_id, old), *stamp)}
        path = self._labels / tag / label_name(image_id, ext)
        if ext in outdated or not path.exists():
            kept = RevisionFile(sha=sha, ext=ext, size=size, path=self._files.path(sha, ext))
            if not self._files.is_intact(kept):
                log.error("revision %s is missing or damaged; its label is the one that is published", sha[:12])
                self._return_to_published(db, image_id, tag, number)
                return
            staged, _ = self._files.copy(kept, mtime_ns)
            path.parent.mkdir(exist_ok=True)
            staged.rename(path)
        for old in outdated - {ext}:
            (self._labels / tag / label_name(image_id, old)).unlink()

    def _return_to_published(self, db: sqlite3.Connection, image_id: str, tag: str, lost: int) -> None:
        """Make the newest revision that is still published the label again, in place of one that the disk has lost."""
        for number, sha, ext, size, mtime_ns, info in db.execute(
            f"SELECT number, sha, ext, size, mtime_ns, info FROM revision WHERE {_OF} AND number < ?"
            " ORDER BY number DESC",
            (image_id, tag, lost),
        ).fetchall():
            if self._is_published(tag, label_name(image_id, ext), size, mtime_ns):
                kept = RevisionFile(sha=sha, ext=ext, size=size, path=self._files.path(sha, ext))
                stamp = FileStamp(size=size, mtime_ns=mtime_ns)
                put_label(db, image_id, tag, kept, stamp, number=number, session=self._session, info=info_of(info))
                return

    def _unpublish(self, db: sqlite3.Connection, image_id: str, tag: str, doomed: Iterable[str]) -> None:
        for ext in doomed:
            stamps = db.execute(
                f"SELECT size, mtime_ns FROM revision WHERE {_OF} AND ext = ?", (image_id, tag, ext)
            ).fetchall()
            if any(self._is_published(tag, label_name(image_id, ext), *stamp) for stamp in stamps):
                (self._labels / tag / label_name(image_id, ext)).unlink()
            sync(self._labels / tag)

    def _is_published(self, tag: str, name: str, size: int, mtime_ns: int) -> bool:
        return FileStamp.of(self._labels / tag / name) == FileStamp(size=size, mtime_ns=mtime_ns)
