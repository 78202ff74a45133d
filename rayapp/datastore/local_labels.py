"""LocalLabels: the labels of a `LocalDatastore`, each a current revision and its history.

Saving a label: sync the staged file -> link it into `.rayapp/revisions/` under its digest -> commit to the index ->
publish at `labels/<tag>/<id><ext>` by rename -> answer. Thread-safe; every change is committed by the single writer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayapp.datastore import leases
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.document import DocumentFile
from rayapp.datastore.image_files import forget_file
from rayapp.datastore.image_names import label_name
from rayapp.datastore.index import Index, add_revision, json_text, put_label, update_label
from rayapp.datastore.interfaces import Author, Info, LabelRecord, Revision
from rayapp.datastore.records import LABEL, REVISION, RecordMapper
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore
from rayapp.datastore.studies_folder import StudiesFolder
from rayapp.errors import BadRequest, Busy, Conflict, NotFound
from rayapp.files.durable import checked_ext, disk_error, sync
from rayapp.protocol import checked_name

Doomed = tuple[str, str, str]
"""(image id, tag, extension) of a file to be deleted; the tag of an image's own file is ""."""
DOOM = "INSERT INTO doomed VALUES(?, ?, ?)"
UNDOOM = "DELETE FROM doomed WHERE image_id = ? AND tag = ? AND ext = ?"


class LocalLabels:
    """The part of a `Datastore` that keeps labels; a mixin of `LocalDatastore`."""

    _opened: StudiesFolder
    _index: Index
    _commit: GroupCommit
    _document: DocumentFile
    _files: RevisionStore
    _records: RecordMapper
    _studies: Path
    _labels: Path

    def label(self, image_id: str, tag: str) -> LabelRecord:
        """See `Datastore`."""
        with self._index.reader() as db:
            row = db.execute(LABEL + " WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
        if row is None:
            raise _no_label(image_id, tag)
        return self._records.label(row)

    def labels(self, image_id: str) -> dict[str, LabelRecord]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute(LABEL + " WHERE image_id = ? ORDER BY rowid", (image_id,)).fetchall()
            if not rows:
                _check_image(db, image_id)
        return {row[1]: self._records.label(row) for row in rows}

    def save_label(
        self,
        image_id: str,
        tag: str,
        staged: Path,
        ext: str,
        *,
        info: Mapping[str, Any],
        author: Author,
        model_version: str | None = None,
        expected: int | None = None,
    ) -> LabelRecord:
        """See `Datastore`. Idempotent for the same staged file.

        If another program has written to the label's file since the last scan, its content becomes a revision first.
        """
        checked_name(tag, "tag")
        if not checked_ext(ext):
            raise BadRequest("the label file has no extension: give one such as .nii.gz")
        self._files.staged(staged)
        with self._index.reader() as db:
            _check_image(db, image_id)
        if self._saved_before(image_id, tag, staged.name):
            self._files.drop(staged)
            return self.label(image_id, tag)
        now = time.time_ns()
        full_info = {**info, **signed(author), "ts": now // 1_000_000_000, "name": label_name(image_id, ext)}
        kept, copy, stamp = self._kept(staged, ext, now)
        target = self._labels / tag / label_name(image_id, ext)

        def apply(db: sqlite3.Connection) -> tuple[int, set[Path]]:
            replaced = self._replaced(db, image_id, tag, ext, expected)
            number = add_revision(
                db,
                image_id,
                tag,
                kept,
                stamp,
                author=author,
                model_version=model_version,
                info=full_info,
                staged=staged.name,
            )
            put_label(db, image_id, tag, kept, stamp, number=number, session=self._opened.session, info=full_info)
            leases.renew(db, image_id)
            return number, replaced - {target}

        def publish(saved: tuple[int, set[Path]]) -> None:
            _, others = saved
            try:
                for other in others:
                    other.unlink(missing_ok=True)
                target.parent.mkdir(exist_ok=True)
                copy.rename(target)
            except OSError as error:
                self._opened.repair.postpone(image_id, tag, error)

        try:
            number, _ = self._commit.do(apply, folders=(kept.path.parent,), publish=publish)
        finally:
            self._files.drop(copy)
        self._files.drop(staged)
        self._document.touch()
        return self._records.label((image_id, tag, ext, kept.sha, number, json_text(full_info)))

    def _kept(self, staged: Path, ext: str, now: int) -> tuple[RevisionFile, Path, FileStamp]:
        """Keep the staged file as a revision.

        Args:
            staged: the staged file.
            ext: its extension.
            now: modification time of the copy, in nanoseconds since the epoch.

        Returns:
            The revision, a copy to publish, and the copy's stamp.

        Raises:
            NotFound: the staged file does not exist.
            Busy: the files cannot be written to the disk.
        """
        try:
            kept = self._files.keep(staged, ext)
            copy, stamp = self._files.copy(kept, now)
        except FileNotFoundError:
            raise no_staged() from None
        except OSError as error:
            raise disk_error(error) from error
        return kept, copy, stamp

    def _replaced(self, db: sqlite3.Connection, image_id: str, tag: str, ext: str, expected: int | None) -> set[Path]:
        """The label's files that a save replaces, after edits by other programs were stored as a revision.

        Raises:
            NotFound: unknown image.
            Conflict: the newest revision is not the expected one.
        """
        _check_image(db, image_id)
        self._opened.reconciler.adopt_unseen(db, tag, image_id, ext)
        _check_expected(db, image_id, tag, expected)
        old = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
        unpublished = {self._labels / tag / label_name(image_id, old[0])} if old else set()  # as a rule it exists
        return {path for _, path in self._opened.reconciler.files(tag, image_id, None)} | unpublished

    def _saved_before(self, image_id: str, tag: str, staged: str) -> bool:
        """True if an earlier call saved this staged file, and its answer was lost in a crash."""
        query = "SELECT 1 FROM revision WHERE image_id = ? AND tag = ? AND staged = ?"
        with self._index.reader() as db:
            return db.execute(query, (image_id, tag, staged)).fetchone() is not None

    def remove_label(self, image_id: str, tag: str, *, expected: int | None = None) -> bool:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            self._opened.reconciler.adopt_unseen(db, tag, image_id)
            row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            if row is None:
                return []
            _check_expected(db, image_id, tag, expected)
            db.execute("DELETE FROM label WHERE image_id = ? AND tag = ?", (image_id, tag))
            return self._opened.reconciler.doomed(image_id, tag, row[0])

        return self._remove(apply)

    def _remove(self, forget: Callable[[sqlite3.Connection], list[Doomed]]) -> bool:
        """Delete rows, then their files, durably. Returns False if there was nothing to delete.

        Args:
            forget: deletes the rows on the given connection and returns the files to delete.
        """
        gone: list[Path] = []

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            doomed = forget(db)
            db.executemany(DOOM, doomed)
            return doomed

        def publish(doomed: list[Doomed]) -> None:
            for image_id, tag, ext in doomed:
                path = (
                    self._labels / tag / label_name(image_id, ext) if tag else self._opened.source.path(image_id, ext)
                )
                try:
                    with suppress(FileNotFoundError):
                        gone.append(self._files.discard(path))
                    sync(path.parent)
                except OSError as error:
                    self._opened.repair.postpone(image_id, tag, error)

        doomed = self._commit.do(apply, publish=publish)
        for path in gone:
            self._files.drop(path)
        if doomed:
            over = [each for each in doomed if each[:2] not in self._opened.repair.late]
            with suppress(Busy):  # the change itself is durable; the next start finds nothing left to remove
                self._commit.do(lambda db: _undoom(db, over))
            self._document.touch()
        return bool(doomed)

    def update_label_info(self, image_id: str, tag: str, info: Mapping[str, Any]) -> Info:
        """See `Datastore`."""
        merged = self._commit.do(lambda db: update_label(db, image_id, tag, info))
        if merged is None:
            raise _no_label(image_id, tag)
        self._document.touch()
        return merged

    def revisions(self, image_id: str, tag: str) -> list[Revision]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute(REVISION + " WHERE image_id = ? AND tag = ? ORDER BY number", (image_id, tag)).fetchall()
        return [self._records.revision(row) for row in rows]


def _undoom(db: sqlite3.Connection, over: Iterable[Doomed]) -> None:
    """Note that these files are deleted."""
    for each in over:
        db.execute(UNDOOM, each)
        if not each[1]:
            forget_file(db, each[0])


def _check_image(db: sqlite3.Connection, image_id: str) -> None:
    if not db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone():
        raise no_image(image_id)


def _check_expected(db: sqlite3.Connection, image_id: str, tag: str, expected: int | None) -> None:
    """Raise Conflict if the label's newest revision is another than the expected one; 0 expects no label."""
    if expected is None:
        return
    row = db.execute(
        "SELECT l.number, r.user, r.ts FROM label AS l JOIN revision AS r USING(image_id, tag, number)"
        " WHERE image_id = ? AND tag = ?",
        (image_id, tag),
    ).fetchone()
    if (row[0] if row else 0) == expected:
        return
    if row is None:
        raise Conflict(f"label {tag!r} of image {image_id!r} has been removed: save it again without a condition")
    number, user, ts = row
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ts))
    raise Conflict(
        f"revision {number} of label {tag!r} of image {image_id!r} was saved by {user} at {when}, after the revision"
        f" that this change is based on ({expected or 'none'}): load the newest one and merge the changes"
    )


def signed(author: Author) -> Info:
    """The author's fields in an info."""
    return {"user": author.user, **({"client_id": author.client_id} if author.client_id else {})}


def no_image(image_id: str) -> NotFound:
    """The error for an unknown image."""
    return NotFound(f"no image {image_id[:200]!r}: see the list of images")


def no_staged() -> NotFound:
    """The error for a staged file that is no longer there."""
    return NotFound("the staged upload no longer exists: upload the file again")


def _no_label(image_id: str, tag: str) -> NotFound:
    return NotFound(f"image {image_id[:200]!r} has no label under tag {tag[:200]!r}")
