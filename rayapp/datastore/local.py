"""LocalDatastore: a studies folder; every acknowledged change is durable, and no file is ever half written.

The index is authoritative: a crash before a commit leaves the old state, a crash after it the new one, whose files the
next opening publishes. Only one process at a time can open a folder; within it the store is thread-safe.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.dataset_zip import write_archive
from rayapp.datastore.document import pieces
from rayapp.datastore.image_files import delete_maps, fingerprint, is_as_recorded, record
from rayapp.datastore.image_names import id_of, label_name, shown
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import (
    delete_image,
    forget_vanished,
    info_of,
    insert_image,
    update_image,
)
from rayapp.datastore.interfaces import Author, ImageRecord, Info
from rayapp.datastore.journal import Journal
from rayapp.datastore.local_labels import DOOM, UNDOOM, Doomed, LocalLabels, no_image, no_staged, signed
from rayapp.datastore.records import IMAGE
from rayapp.datastore.schema import OF_REPLACED
from rayapp.datastore.studies_folder import StudiesFolder
from rayapp.datastore.worklist import Worklist
from rayapp.errors import BadRequest, Busy, Conflict, Disabled, NotFound
from rayapp.files.durable import checked_ext, disk_error, sync
from rayapp.imaging.detached import DETACHED
from rayapp.protocol import FINAL, checked_name


class LocalDatastore(LocalLabels, Worklist, Journal):
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
        self._document, self._records = opened.document, opened.records

    def close(self) -> None:
        """Write pending changes of `datastore_v2.json` and release the folder. Later saves raise Conflict."""
        self._opened.close()

    # Images

    def status(self) -> Info:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute("SELECT kind, name, n FROM count ORDER BY rowid").fetchall()
            replaced = self._of_replaced(db)
        tags = {name: n for kind, name, n in rows if kind == "tag" and n}
        total = next(n for kind, _, n in rows if kind == "image")
        problems = self._opened.left_out.reasons() | replaced
        return {
            "total": total,
            "completed": tags.get(FINAL, 0),
            "label_tags": tags,
            **({"problems": problems} if problems else {}),
            "storage": self._opened.sizes(rows),
        }

    def _of_replaced(self, db: sqlite3.Connection) -> dict[str, str]:
        """Advice on images that were replaced after labels of them had been saved, by file name."""
        rows = db.execute(
            "SELECT id, ext, n FROM image JOIN (SELECT image_id, count(*) AS n FROM label INDEXED BY label_replaced"
            f" WHERE {OF_REPLACED} GROUP BY image_id) ON id = image_id"
        )
        return {
            shown(self._opened.source.path(image_id, ext).name): f"it was replaced after {number} of its labels were"
            " saved: check them, and save or remove them"
            for image_id, ext, number in rows
        }

    def image(self, image_id: str) -> ImageRecord:
        """See `Datastore`."""
        return self._image(image_id)

    def _image(self, image_id: str) -> ImageRecord:
        """The image's record, from the index alone."""
        with self._index.reader() as db:
            row = db.execute(IMAGE + " WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise no_image(image_id)
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
        target = self._studies / label_name(checked_name(image_id, "image"), checked_ext(ext))
        if id_of(label_name(image_id, "")) != image_id:
            raise BadRequest(
                f"image id {image_id!r} is reserved for the encoded form of another file name: choose another id"
            )
        if ext not in folder_scan.SINGLE_EXTS or image_id == folder_scan.LABELS:
            raise BadRequest(f"an image file must end in {', '.join(folder_scan.SINGLE_EXTS)}, not {ext!r}")
        self._files.staged(staged)
        full_info = {**info, **signed(author), "ts": int(time.time()), "name": target.name}
        seen = fingerprint(staged)

        def apply(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT staged FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is not None and row[0] == staged.name:
                return
            if row is not None or target.exists():
                raise _taken(image_id)
            staged.stat()  # raises FileNotFoundError
            self._opened.reconciler.make_way(db, image_id, staged)
            insert_image(db, image_id, ext, full_info, staged.name)
            update_image(db, image_id, full_info)
            if seen is not None:
                record(db, image_id, seen)  # so that another file in its place is noticed from now on
            db.execute(DOOM, (image_id, "", ext))  # until the file has its name

        def publish(_: None) -> None:
            try:
                if staged.exists():  # else an earlier call has placed it
                    self._opened.repair.place_image(staged, target)
            except FileExistsError:
                raise _taken(image_id) from None
            except OSError as error:
                self._opened.repair.postpone(image_id, "", error)

        try:
            if staged.exists():
                sync(staged)
            self._commit.do(apply, folders=(self._files.staging,), publish=publish)
        except FileNotFoundError:
            raise no_staged() from None
        except OSError as error:
            raise disk_error(error) from error
        if (image_id, "") not in self._opened.repair.late:
            with suppress(Busy):
                self._commit.do(lambda db: db.execute(UNDOOM, (image_id, "", ext)).rowcount)
            self._files.drop(staged)
        self._document.touch()
        return self.image(image_id)

    def remove_image(self, image_id: str) -> None:
        """See `Datastore`. Its click log is removed too; the revisions of its labels are kept.

        Raises Disabled for a DICOM series in a subfolder, and for an image in two files.
        """
        image = self._image(image_id)
        if image.ext in DETACHED:
            raise Disabled(f"image {image_id!r} is stored in two files: delete them in the studies folder")
        if image.path.parent != self._studies:
            raise Disabled(
                f"series {image_id!r} is stored in a subfolder of the studies folder: delete its files there"
            )

        def apply(db: sqlite3.Connection) -> list[Doomed]:
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is None:
                raise no_image(image_id)
            if not is_as_recorded(db, image_id, image.path):
                raise Busy(f"another program has just written the file of image {image_id!r}: look at it again first")
            for tag in folder_scan.tags(self._labels):  # also where only another program has put a label so far
                self._opened.reconciler.adopt_unseen(db, tag, image_id)
            labels = db.execute("SELECT tag, ext FROM label WHERE image_id = ?", (image_id,)).fetchall()
            delete_image(db, image_id)
            forget_vanished(db, image_id)
            delete_maps(self._files.root, image_id)
            files = [each for tag, ext in labels for each in self._opened.reconciler.doomed(image_id, tag, ext)]
            return [*files, (image_id, "", row[0])]

        self._document.import_edits()  # those of this image must not become the next one's of its name
        self._remove(apply)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> Info:
        """See `Datastore`."""
        merged = self._commit.do(lambda db: update_image(db, image_id, info))
        if merged is None:
            raise no_image(image_id)
        self._document.touch()
        return merged

    # The whole store

    def datalist(
        self,
        *,
        tag: str = FINAL,
        immutable: bool = False,
        images: Path | None = None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """See `Datastore`."""
        with self._index.reader() as db:
            pairs = self._pairs(db, tag, None)
        if immutable:
            return [
                {
                    "image": str(image.path),
                    "label": str(revision),
                    "info": info,
                    "patient": image.info.get("PatientID") or image.info.get("StudyInstanceUID"),
                }
                for image, _, revision, info in pairs
            ]
        return [{"image": str(image.path), "label": str(self._labels / tag / name)} for image, name, _, _ in pairs]

    def document(self) -> Info:
        """See `Datastore`."""
        return info_of(self._text())

    def archive(self, target: Path, *, limit: int | None = None) -> int:
        """See `Datastore`. Raises NotFound while no image has a final label."""
        with self._index.reader() as db:
            pairs = self._pairs(db, FINAL, limit)
        if not pairs:
            raise NotFound("no image has a final label yet: save one, then download the dataset")
        return write_archive(target, [pair[:3] for pair in pairs], self._text())

    def _pairs(self, db: sqlite3.Connection, tag: str, limit: int | None) -> list[tuple[ImageRecord, str, Path, Info]]:
        """Images with a label under the tag: (image, name of the label's file, path of its revision, the label's
        info).
        """
        rows = db.execute(
            "SELECT i.id, i.ext, i.info, l.ext, l.sha, l.info FROM label AS l JOIN image AS i ON i.id = l.image_id"
            " WHERE l.tag = ? ORDER BY i.id LIMIT ?",
            (tag, _limit(limit)),
        )
        return [
            (
                self._records.image(row[:3]),
                label_name(row[0], row[3]),
                self._files.path(row[4], row[3]),
                info_of(row[5]),
            )
            for row in rows
        ]

    def _text(self) -> str:
        with self._index.reader() as db:
            db.execute("BEGIN")
            return "".join(pieces(db))

    def refresh(self) -> None:
        """See `Datastore`."""
        self._opened.scan()

    def staging(self) -> Path:
        """See `Datastore`."""
        return self._files.staging

    def stage(self, suffix: str) -> Path:
        """See `Datastore`."""
        return self._files.stage(suffix)


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _taken(image_id: str) -> Conflict:
    return Conflict(f"image {image_id!r} exists already: choose another id, or delete it first")
