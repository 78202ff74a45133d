"""LocalDatastore: the studies folder of one server, everything in it durable and nothing ever half written.

A label's way: staged file synced -> linked into `.rayapp/revisions/` under its digest -> index commit -> published
at `labels/<tag>/<id><ext>` by rename -> answered. The index is the truth: a crash before its commit leaves the old
label, after it the new one, which the next opening publishes. One process at a time has a folder open; within it any
number of threads may call.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import disk_full, sync
from rayapp.datastore.dataset_zip import write_archive
from rayapp.datastore.document import pieces
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import (
    add_revision,
    delete_image,
    info_of,
    insert_image,
    put_label,
    update_image,
    update_label,
)
from rayapp.datastore.interfaces import Author, ImageRecord, Info, LabelRecord, Revision
from rayapp.datastore.journal import Journal
from rayapp.datastore.records import IMAGE, LABEL, REVISION, RecordMapper
from rayapp.datastore.revisions import checked_ext, delete
from rayapp.datastore.studies_folder import StudiesFolder
from rayapp.datastore.worklist import Worklist, renew_lease
from rayapp.errors import BadRequest, Conflict, Disabled, NotFound
from rayapp.protocol import FINAL, checked_name

Doomed = tuple[str, str, str]
"""(image id, tag, extension) of a file to be removed; the tag of an image's own file is empty."""


class LocalDatastore(Worklist, Journal):
    """Implements `rayapp.datastore.interfaces.Datastore` on a folder laid out as MONAI Label's."""

    def __init__(
        self,
        studies: Path,
        *,
        watch: bool = True,
        poll: float | None = None,
        settle: float = 1.0,
        patience: float = 0.0,
        source: ImageSource | None = None,
    ) -> None:
        """Open the folder: import what MONAI Label left, repair what a crash left, look at the files.

        `watch` notices files that others add or remove, by the kernel's events or every `poll` seconds (by itself
        every 10 on a network file system). A file counts as whole once unchanged for `settle` seconds. `patience` is
        how long to wait for another process to let go of the folder. `source` has the images; by default the folder.

        Raises:
            Conflict: if another process has the folder open.
            NotFound: if there is no such folder.
        """
        opened = StudiesFolder(studies, watch=watch, poll=poll, settle=settle, patience=patience, source=source)
        self._opened = opened
        self._studies, self._labels = opened.root, opened.labels
        self._files, self._index, self._commit = opened.files, opened.index, opened.commit
        self._document, self._records = opened.document, RecordMapper(opened.root, opened.files, opened.source)

    def close(self) -> None:
        """Write what is due, let go of the folder. Further saves raise Conflict."""
        self._opened.close()

    # Images

    def status(self) -> Info:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute("SELECT kind, name, n FROM count ORDER BY rowid").fetchall()
        tags = {name: n for kind, name, n in rows if kind == "tag" and n}
        total = next(n for kind, _, n in rows if kind == "image")
        return {"total": total, "completed": tags.get(FINAL, 0), "label_tags": tags}

    def image(self, image_id: str) -> ImageRecord:
        """See `Datastore`."""
        return self._image(image_id)

    def _image(self, image_id: str) -> ImageRecord:
        """What the index knows of the image."""
        with self._index.reader() as db:
            row = db.execute(IMAGE + " WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise _no_image(image_id)
        return self._records.image(row)

    def instances(self, image_id: str) -> Path:
        """See `Datastore`."""
        record = self._image(image_id)
        if record.ext:
            raise BadRequest(f"image {image_id!r} is no DICOM series, so no DICOM SEG can be made of it")
        return record.path

    def image_ids(self, *, after: str | None = None, limit: int | None = None) -> list[str]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute("SELECT id FROM image WHERE id > ? ORDER BY id LIMIT ?", (after or "", _limit(limit)))
            return [row[0] for row in rows]

    def add_image(
        self, image_id: str, staged: Path, ext: str, *, info: Mapping[str, Any], author: Author
    ) -> ImageRecord:
        """See `Datastore`. Safe to repeat with the same staged file."""
        target = self._studies / (checked_name(image_id, "image") + checked_ext(ext))
        if ext not in folder_scan.IMAGE_EXTS or image_id == folder_scan.LABELS:
            raise BadRequest(f"an image file ends in {', '.join(folder_scan.IMAGE_EXTS)}, not {ext!r}")
        self._files.staged(staged)
        whole = {**info, **_signed(author), "ts": int(time.time()), "name": target.name}

        def apply(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT staged FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is not None and row[0] == staged.name:
                return
            # Linked before a crash, and found by the scan that followed it: then it is this very image.
            linked = target.exists() and target.samefile(staged)
            if not linked:
                if row is not None:
                    raise _taken(image_id)
                target.hardlink_to(staged)
                sync(self._studies)
            insert_image(db, image_id, ext, whole, staged.name)
            update_image(db, image_id, whole)

        try:
            if staged.exists():
                sync(staged)
            self._commit.do(apply)
        except FileNotFoundError:
            raise _no_staged() from None
        except FileExistsError:
            raise _taken(image_id) from None
        staged.unlink(missing_ok=True)
        self._document.touch()
        return self.image(image_id)

    def remove_image(self, image_id: str) -> None:
        """See `Datastore`. Its click log goes too; the revisions of its labels stay.

        Raises Disabled for a series of DICOM files that lie anywhere in the folder.
        """
        if self._image(image_id).path.parent != self._studies:
            raise Disabled("this series' files lie below the studies folder as somebody filed them: remove them there")

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is None:
                raise _no_image(image_id)
            labels = db.execute("SELECT tag, ext FROM label WHERE image_id = ?", (image_id,)).fetchall()
            delete_image(db, image_id)
            db.execute("DELETE FROM event WHERE image_id = ?", (image_id,))
            return [*((image_id, tag, ext) for tag, ext in labels), (image_id, "", row[0])]

        self._remove(apply)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> Info:
        """See `Datastore`."""
        whole = self._commit.do(lambda db: update_image(db, image_id, info))
        if whole is None:
            raise _no_image(image_id)
        self._document.touch()
        return whole

    # Labels

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
            if not rows and not db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone():
                raise _no_image(image_id)
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
    ) -> LabelRecord:
        """See `Datastore`. Safe to repeat with the same staged file."""
        checked_name(tag, "tag")
        if not checked_ext(ext):
            raise BadRequest("a label file needs an extension such as .nii.gz")
        self._files.staged(staged)
        self._image(image_id)
        if self._saved_before(image_id, tag, staged.name):
            staged.unlink(missing_ok=True)
            return self.label(image_id, tag)
        now = time.time_ns()
        whole = {**info, **_signed(author), "ts": now // 1_000_000_000, "name": image_id + ext}
        try:
            kept = self._files.keep(staged, ext)
            copy, stamp = self._files.copy(kept, now)
        except FileNotFoundError:
            raise _no_staged() from None
        except OSError as error:
            raise disk_full() from error
        target = self._labels / tag / (image_id + ext)

        def apply(db: sqlite3.Connection) -> Path | None:
            if not db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone():
                raise _no_image(image_id)
            old = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            number = add_revision(
                db,
                image_id,
                tag,
                kept,
                stamp,
                author=author,
                model_version=model_version,
                info=whole,
                staged=staged.name,
            )
            put_label(db, image_id, tag, kept, stamp, number=number, session=self._opened.session, info=whole)
            renew_lease(db, image_id)
            return target.with_name(image_id + old[0]) if old and old[0] != ext else None

        def publish(replaced: Path | None) -> None:
            if replaced is not None:
                replaced.unlink(missing_ok=True)
            target.parent.mkdir(exist_ok=True)
            copy.rename(target)

        try:
            self._commit.do(apply, folders=(kept.path.parent,), publish=publish)
        finally:
            copy.unlink(missing_ok=True)
        staged.unlink(missing_ok=True)
        self._document.touch()
        return LabelRecord(id=image_id, tag=tag, path=target, ext=ext, revision=kept.sha, info=whole)

    def _saved_before(self, image_id: str, tag: str, staged: str) -> bool:
        """Whether this is a save made again because the process died before it had answered."""
        found = "SELECT 1 FROM revision WHERE image_id = ? AND tag = ? AND staged = ?"
        with self._index.reader() as db:
            return db.execute(found, (image_id, tag, staged)).fetchone() is not None

    def remove_label(self, image_id: str, tag: str) -> bool:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            db.execute("DELETE FROM label WHERE image_id = ? AND tag = ?", (image_id, tag))
            return [(image_id, tag, row[0])] if row else []

        return self._remove(apply)

    def _remove(self, forget: Callable[[sqlite3.Connection], list[Doomed]]) -> bool:
        """Forget rows, then take their files away, durably, before the answer; False if there was nothing."""
        gone: list[Path] = []

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            doomed = forget(db)
            db.executemany("INSERT INTO doomed VALUES(?, ?, ?)", doomed)
            return doomed

        def publish(doomed: list[Doomed]) -> None:
            for image_id, tag, ext in doomed:
                path = (self._labels / tag if tag else self._studies) / (image_id + ext)
                with suppress(FileNotFoundError):
                    gone.append(self._files.discard(path))
                sync(path.parent)

        doomed = self._commit.do(apply, publish=publish)
        for path in gone:
            delete(path)
        if doomed:
            self._commit.do(lambda db: db.executemany(_SPARE, doomed).rowcount)
            self._document.touch()
        return bool(doomed)

    def update_label_info(self, image_id: str, tag: str, info: Mapping[str, Any]) -> Info:
        """See `Datastore`."""
        whole = self._commit.do(lambda db: update_label(db, image_id, tag, info))
        if whole is None:
            raise _no_label(image_id, tag)
        self._document.touch()
        return whole

    def revisions(self, image_id: str, tag: str) -> list[Revision]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute(REVISION + " WHERE image_id = ? AND tag = ? ORDER BY number", (image_id, tag)).fetchall()
        return [self._records.revision(row) for row in rows]

    # What is there

    def datalist(self, *, tag: str = FINAL, immutable: bool = False) -> list[dict[str, str]]:
        """See `Datastore`."""
        with self._index.reader() as db:
            return [
                {"image": str(image.path), "label": str(revision if immutable else self._labels / tag / name)}
                for image, name, revision in self._pairs(db, tag, None)
            ]

    def document(self) -> Info:
        """See `Datastore`."""
        return info_of(self._text())

    def archive(self, target: Path, *, limit: int | None = None) -> int:
        """See `Datastore`. Raises NotFound when no image has a final label yet."""
        with self._index.reader() as db:
            pairs = self._pairs(db, FINAL, limit)
        if not pairs:
            raise NotFound("no image has a final label yet: save one, then fetch the dataset")
        return write_archive(target, pairs, self._text())

    def _pairs(self, db: sqlite3.Connection, tag: str, limit: int | None) -> list[tuple[ImageRecord, str, Path]]:
        """(image, name of the label's file, path of its revision) of images with a label under the tag."""
        rows = db.execute(
            "SELECT i.id, i.ext, i.info, l.ext, l.sha FROM label AS l JOIN image AS i ON i.id = l.image_id"
            " WHERE l.tag = ? ORDER BY i.id LIMIT ?",
            (tag, _limit(limit)),
        )
        return [(self._records.image(row[:3]), row[0] + row[3], self._files.path(row[4], row[3])) for row in rows]

    def _text(self) -> str:
        with self._index.reader() as db:
            db.execute("BEGIN")
            return "".join(pieces(db))

    def refresh(self) -> None:
        """See `Datastore`."""
        self._opened.look()

    def stage(self, suffix: str) -> Path:
        """See `Datastore`."""
        return self._files.stage(suffix)


_SPARE = "DELETE FROM doomed WHERE image_id = ? AND tag = ? AND ext = ?"


def _signed(author: Author) -> Info:
    return {"user": author.user, **({"client_id": author.client_id} if author.client_id else {})}


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _taken(image_id: str) -> Conflict:
    return Conflict(f"there is an image {image_id!r} already: choose another id, or remove it first")


def _no_image(image_id: str) -> NotFound:
    return NotFound(f"there is no image {image_id[:200]!r}: look at the list of images")


def _no_label(image_id: str, tag: str) -> NotFound:
    return NotFound(f"image {image_id[:200]!r} has no label {tag[:200]!r}")


def _no_staged() -> NotFound:
    return NotFound("the staged file is gone: upload it again")
