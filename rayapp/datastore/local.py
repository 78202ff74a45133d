"""LocalDatastore: a studies folder; every acknowledged change is durable, and no file is ever half written.

Saving a label: sync the staged file -> link it into `.rayapp/revisions/` under its digest -> commit to the index ->
publish at `labels/<tag>/<id><ext>` by rename -> answer. The index is authoritative: a crash before the commit leaves
the old label, a crash after it the new one, which the next opening publishes. Only one process at a time can open a
folder; within it the store is thread-safe.
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
"""(image id, tag, extension) of a file to be deleted; the tag of an image's own file is ""."""


class LocalDatastore(Worklist, Journal):
    """Implements `rayapp.datastore.interfaces.Datastore` on a folder in MONAI Label's layout."""

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
        """Open the folder: import MONAI Label's `datastore_v2.json`, repair after a crash, and scan the files.

        Args:
            studies: the studies folder.
            watch: notice files that other programs add, change or remove.
            poll: scan every `poll` seconds instead of waiting for the kernel's events; by default 10 s on a network
                file system, where there are none.
            settle: seconds for which a file must be unchanged to count as complete.
            patience: seconds to wait for another process to close the folder.
            source: where the images come from; by default the folder.

        Raises:
            Conflict: if another process has the folder open.
            NotFound: if the folder does not exist.
        """
        opened = StudiesFolder(studies, watch=watch, poll=poll, settle=settle, patience=patience, source=source)
        self._opened = opened
        self._studies, self._labels = opened.root, opened.labels
        self._files, self._index, self._commit = opened.files, opened.index, opened.commit
        self._document, self._records = opened.document, RecordMapper(opened.root, opened.files, opened.source)

    def close(self) -> None:
        """Write pending changes of `datastore_v2.json` and release the folder. Later saves raise Conflict."""
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
        """The image's record, from the index alone."""
        with self._index.reader() as db:
            row = db.execute(IMAGE + " WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise _no_image(image_id)
        return self._records.image(row)

    def instances(self, image_id: str) -> Path:
        """See `Datastore`."""
        record = self._image(image_id)
        if record.ext:
            raise BadRequest(
                f"image {image_id!r} is not a DICOM series, so it cannot have a DICOM SEG: request another format"
            )
        return record.path

    def image_ids(self, *, after: str | None = None, limit: int | None = None) -> list[str]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute("SELECT id FROM image WHERE id > ? ORDER BY id LIMIT ?", (after or "", _limit(limit)))
            return [row[0] for row in rows]

    def add_image(
        self, image_id: str, staged: Path, ext: str, *, info: Mapping[str, Any], author: Author
    ) -> ImageRecord:
        """See `Datastore`. Idempotent for the same staged file."""
        target = self._studies / (checked_name(image_id, "image") + checked_ext(ext))
        if ext not in folder_scan.IMAGE_EXTS or image_id == folder_scan.LABELS:
            raise BadRequest(f"an image file must end in {', '.join(folder_scan.IMAGE_EXTS)}, not {ext!r}")
        self._files.staged(staged)
        full_info = {**info, **_signed(author), "ts": int(time.time()), "name": target.name}

        def apply(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT staged FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is not None and row[0] == staged.name:
                return
            # Linked before a crash and indexed by the scan that followed: then it is this very file.
            linked = target.exists() and target.samefile(staged)
            if not linked:
                if row is not None:
                    raise _taken(image_id)
                target.hardlink_to(staged)
                sync(self._studies)
            insert_image(db, image_id, ext, full_info, staged.name)
            update_image(db, image_id, full_info)

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
        """See `Datastore`. Its click log is removed too; the revisions of its labels are kept.

        Raises Disabled for a DICOM series in a subfolder.
        """
        if self._image(image_id).path.parent != self._studies:
            raise Disabled(
                f"series {image_id!r} is stored in a subfolder of the studies folder: delete its files there"
            )

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
        merged = self._commit.do(lambda db: update_image(db, image_id, info))
        if merged is None:
            raise _no_image(image_id)
        self._document.touch()
        return merged

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
        """See `Datastore`. Idempotent for the same staged file."""
        checked_name(tag, "tag")
        if not checked_ext(ext):
            raise BadRequest("the label file has no extension: give one such as .nii.gz")
        self._files.staged(staged)
        self._image(image_id)
        if self._saved_before(image_id, tag, staged.name):
            staged.unlink(missing_ok=True)
            return self.label(image_id, tag)
        now = time.time_ns()
        full_info = {**info, **_signed(author), "ts": now // 1_000_000_000, "name": image_id + ext}
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
                info=full_info,
                staged=staged.name,
            )
            put_label(db, image_id, tag, kept, stamp, number=number, session=self._opened.session, info=full_info)
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
        return LabelRecord(id=image_id, tag=tag, path=target, ext=ext, revision=kept.sha, info=full_info)

    def _saved_before(self, image_id: str, tag: str, staged: str) -> bool:
        """True if this staged file was saved already by a call whose answer was lost in a crash."""
        query = "SELECT 1 FROM revision WHERE image_id = ? AND tag = ? AND staged = ?"
        with self._index.reader() as db:
            return db.execute(query, (image_id, tag, staged)).fetchone() is not None

    def remove_label(self, image_id: str, tag: str) -> bool:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            db.execute("DELETE FROM label WHERE image_id = ? AND tag = ?", (image_id, tag))
            return [(image_id, tag, row[0])] if row else []

        return self._remove(apply)

    def _remove(self, forget: Callable[[sqlite3.Connection], list[Doomed]]) -> bool:
        """Delete rows, then their files, durably. Returns False if there was nothing to delete.

        Args:
            forget: deletes the rows on the given connection and returns the files to delete.
        """
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
            self._commit.do(lambda db: db.executemany(_UNDOOM, doomed).rowcount)
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

    # The whole store

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
        """See `Datastore`. Raises NotFound while no image has a final label."""
        with self._index.reader() as db:
            pairs = self._pairs(db, FINAL, limit)
        if not pairs:
            raise NotFound("no image has a final label yet: save one, then download the dataset")
        return write_archive(target, pairs, self._text())

    def _pairs(self, db: sqlite3.Connection, tag: str, limit: int | None) -> list[tuple[ImageRecord, str, Path]]:
        """(image, name of the label's file, path of its revision) of the images with a label under the tag."""
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


_UNDOOM = "DELETE FROM doomed WHERE image_id = ? AND tag = ? AND ext = ?"


def _signed(author: Author) -> Info:
    return {"user": author.user, **({"client_id": author.client_id} if author.client_id else {})}


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _taken(image_id: str) -> Conflict:
    return Conflict(f"image {image_id!r} exists already: choose another id, or delete it first")


def _no_image(image_id: str) -> NotFound:
    return NotFound(f"no image {image_id[:200]!r}: see the list of images")


def _no_label(image_id: str, tag: str) -> NotFound:
    return NotFound(f"image {image_id[:200]!r} has no label under tag {tag[:200]!r}")


def _no_staged() -> NotFound:
    return NotFound("the staged upload no longer exists: upload the file again")
