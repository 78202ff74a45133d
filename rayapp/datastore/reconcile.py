"""Reconciler: updates the index from the studies folder and imports MONAI Label's document.

A scan compares folder and index without blocking writers; each difference is checked again within the commit that
records it. The server itself changes published files on the commit thread only, so a difference seen there was made by
another program.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit, chunks
from rayapp.datastore.document import NAME, Entries, edited, entry
from rayapp.datastore.image_files import Fingerprint, ImageFiles, delete_maps, fingerprint, record, recorded
from rayapp.datastore.image_names import id_of, is_unicode
from rayapp.datastore.image_source import IDENTIFYING, ImageSource
from rayapp.datastore.index import (
    Index,
    delete_image,
    forget_image,
    forget_results,
    forget_vanished,
    insert_image,
    mark_replaced,
    reopen,
    set_meta,
    update_image,
    update_label,
)
from rayapp.datastore.interfaces import SERIES_EXT
from rayapp.datastore.label_scan import LabelScan
from rayapp.datastore.left_out import LeftOutEntries
from rayapp.datastore.repair import Repair
from rayapp.datastore.revisions import FileStamp, RevisionStore

IMAGES = "images"
"""The part of the folder that a scan of the images covers, in `LeftOutEntries`."""
LONG_S, DUTY = 5.0, 20
"""Looks at all images' files that take longer than this, in seconds, use at most 1 / DUTY of the time."""

log = logging.getLogger(__name__)


class Reconciler:
    """Brings the index up to date. Callable from any thread except the commit thread; one scan at a time."""

    def __init__(
        self,
        studies: Path,
        *,
        index: Index,
        commit: GroupCommit,
        files: RevisionStore,
        source: ImageSource,
        settle: float,
        session: int,
        left_out: LeftOutEntries,
        repair: Repair,
        touched: Callable[[], None],
    ) -> None:
        self._studies = studies
        self._labels = studies / folder_scan.LABELS
        self._index = index
        self._commit = commit
        self._source = source
        self._settle = settle
        self._image_files = ImageFiles(index, source, settle)
        self._next_look = 0.0
        self._left_out = left_out
        self._repair = repair
        self._touched = touched
        self._label_scan = LabelScan(
            self._labels,
            index=index,
            commit=commit,
            files=files,
            settle=settle,
            session=session,
            left_out=left_out,
            late=repair.late,
            touched=touched,
        )
        self.adopt_unseen = self._label_scan.adopt_unseen
        self.files = self._label_scan.files
        self.doomed = self._label_scan.doomed
        self._scanning = threading.Lock()

    def merge(self, names: Mapping[str, str], theirs: Entries, base: Entries) -> None:
        """Import another program's document.

        Args:
            names: name and description of the study set.
            theirs: entries of the document.
            base: entries of the document it is based on; only differences count as edits.
        """

        def apply(db: sqlite3.Connection) -> None:
            for key, value in names.items():
                set_meta(db, key, value)
            known = {row[0] for row in db.execute("SELECT id FROM image")}
            for image_id in known & theirs.keys():
                old = base.get(image_id, {"image": {"info": {}}, "labels": {}})
                new = theirs[image_id]
                if info := edited(old["image"]["info"], new["image"]["info"]):
                    update_image(db, image_id, info)
                for tag, label in new["labels"].items():
                    if info := edited(old["labels"].get(tag, {"info": {}})["info"], label["info"]):
                        update_label(db, image_id, tag, info)

        self._commit.do(apply)
        self.scan(theirs)

    def concerns(self, paths: Iterable[Path]) -> bool:
        """True if one of the changed paths differs from the index."""
        with self._index.reader() as db:
            return any(self._differs(db, path) for path in paths)

    def scan(self, hints: Mapping[str, Any] | None = None) -> bool:
        """Compare the whole folder with the index and update the index.

        Args:
            hints: document entries with infos for images and labels that may be new.

        Returns:
            True if a file was not complete yet, so that another scan is due soon.
        """
        with self._scanning:
            if not (self._studies / ".rayapp").is_dir():
                log.error("the studies folder is not accessible; the index is left unchanged")
                return True
            self._repair.catch_up()
            with self._index.reader() as db:
                gone = {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, entry FROM vanished")}
            entries = {**gone, **(hints or {})}
            waits = self._scan_images(entries)
            with self._index.reader() as db:
                listed = {row[0] for row in db.execute("SELECT DISTINCT tag FROM label")}
            for tag in sorted(listed.union(folder_scan.tags(self._labels))):
                waits |= self._label_scan.scan(tag, entries)
            return waits

    def _differs(self, db: sqlite3.Connection, path: Path) -> bool:
        if path.name.startswith(".") or path.name in (folder_scan.LABELS, NAME):
            return False
        if path.parent == self._studies:
            stem, _ = folder_scan.split_name(path.name) or (path.name, "")
            if not is_unicode(stem):
                return True
            image_id = id_of(stem)
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            served = row is not None and self._source.path(image_id, row[0]).name == path.name
            if served and path.exists():
                known = db.execute("SELECT size, mtime_ns FROM image_file WHERE image_id = ?", (image_id,)).fetchone()
                return known is None or FileStamp.of(path) != FileStamp(size=known[0], mtime_ns=known[1])
            return served != os.path.lexists(path) and not self._left_out.holds(path)
        if path.parent == self._labels:
            return path.is_dir()
        if not is_unicode(path.name) or self._left_out.holds(path):
            return False
        stamp = FileStamp.of(path)
        dots = [i for i, letter in enumerate(path.name) if letter == "."]
        for image_id, ext in ((id_of(path.name[:i]), path.name[i:]) for i in dots if i):
            row = db.execute(
                "SELECT size, mtime_ns FROM label WHERE image_id = ? AND tag = ? AND ext = ?",
                (image_id, path.parent.name, ext),
            ).fetchone()
            if row is not None:
                return stamp != FileStamp(size=row[0], mtime_ns=row[1])
        return stamp is not None

    def _scan_images(self, hints: dict[str, Any]) -> bool:
        """Update the images. Hints for images that turn out to be replaced are removed."""
        with self._index.reader() as db:
            indexed = dict(db.execute("SELECT id, ext FROM image"))
        extensions, problems = self._source.images(indexed)
        late = self._repair.late
        new = {i: ext for i, ext in extensions.items() if indexed.get(i) != ext and (i, "") not in late}
        complete = self._source.complete(new, self._settle)
        unfinished = {i: ext for i, ext in new.items() if i not in complete}
        stuck = {i: reason for i, ext in unfinished.items() if (reason := self._source.why_incomplete(i, ext))}
        problems |= {self._source.path(i, unfinished[i]): reason for i, reason in stuck.items()}
        self._left_out.replace(IMAGES, problems)
        waits = self._look_at_all({i: ext for i, ext in extensions.items() if indexed.get(i) == ext and i not in new})
        for chunk in chunks([i for i in new if i in complete]):
            self._commit.do(lambda db, chunk=chunk: self._add_images(db, chunk, extensions, hints))  # type: ignore[misc]
        waits |= self._look_at_files({i: extensions[i] for i in complete})
        gone = [image_id for image_id in indexed if image_id not in extensions and (image_id, "") not in late]
        for chunk in chunks(gone):
            self._commit.do(lambda db, chunk=chunk: self._drop_images(db, chunk))  # type: ignore[misc]
        for chunk in chunks(sorted(self._source.replaced() & indexed.keys())):
            self._commit.do(lambda db, chunk=chunk: self._forget_results(db, chunk))  # type: ignore[misc]
        if self._source.keeps_ids():
            self._follow_corrections()
        if complete or gone:
            log.info("%d images added, %d removed", len(complete), len(gone))
            self._touched()
        return waits or len(stuck) < len(unfinished)

    def _follow_corrections(self) -> None:
        """Record corrections of patient and study that were made at the source."""
        columns = ", ".join(f"json_extract(info, '$.{key}')" for key in IDENTIFYING)
        with self._index.reader() as db:
            rows = db.execute(f"SELECT id, {columns} FROM image").fetchall()
        recorded = ((row[0], dict(zip(IDENTIFYING, row[1:], strict=True))) for row in rows)
        self._source.follow(recorded, self._record_corrections)

    def _record_corrections(self, corrected: Mapping[str, Mapping[str, Any]]) -> None:
        for chunk in chunks(sorted(corrected)):
            self._commit.do(lambda db, chunk=chunk: [update_image(db, i, corrected[i]) for i in chunk])  # type: ignore[misc]
        log.warning("patient or study of %d images was corrected in the archive", len(corrected))
        self._touched()

    def _look_at_all(self, images: Mapping[str, str]) -> bool:
        """As `_look_at_files`, but if that takes long, as on a network file system, only in some of the scans."""
        began = time.monotonic()
        if began < self._next_look:
            return False
        waits = self._look_at_files(images)
        if (spent := time.monotonic() - began) > LONG_S:
            self._next_look = time.monotonic() + DUTY * spent
        return waits

    def _look_at_files(self, images: Mapping[str, str]) -> bool:
        """Record fingerprints of the images' files, and which images were replaced. True if another look is due
        soon.
        """
        look = self._image_files.look(images)
        for chunk in chunks([*look.same, *look.replaced]):
            self._commit.do(lambda db, chunk=chunk: self._note_files(db, chunk, look.same, look.replaced))  # type: ignore[misc]
        if look.replaced:
            log.warning("the files of %d images were replaced; the labels that they had stay", len(look.replaced))
            self._touched()
        return look.waits

    def _note_files(
        self,
        db: sqlite3.Connection,
        ids: Iterable[str],
        same: Mapping[str, Fingerprint],
        replaced: Mapping[str, Fingerprint],
    ) -> None:
        for image_id in ids:
            if not db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone():
                continue  # removed since
            if image_id in replaced:
                self._mark_replaced(db, image_id)
            record(db, image_id, replaced[image_id] if image_id in replaced else same[image_id])

    def _mark_replaced(self, db: sqlite3.Connection, image_id: str) -> None:
        mark_replaced(db, image_id, int(time.time()))
        delete_maps(self._studies / ".rayapp", image_id)

    def make_way(self, db: sqlite3.Connection, image_id: str, file: Path) -> bool:
        """Before an image is inserted: set aside what is kept of a vanished image of the same name, unless it is the
        same image.

        Call on the commit thread, within a change.

        Returns:
            True if the image is not the vanished one.
        """
        if self._source.keeps_ids() or db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone():
            return False
        vanished = db.execute("SELECT 1 FROM vanished WHERE id = ?", (image_id,)).fetchone() is not None
        if vanished:
            digest, seen = recorded(db, image_id), fingerprint(file)
            if digest is None or seen is None or seen.digest == digest:
                return False
            self._label_scan.delete_published(db, image_id)
            forget_vanished(db, image_id)
        elif db.execute("SELECT 1 FROM doomed WHERE image_id = ? AND tag <> ''", (image_id,)).fetchone():
            self._label_scan.delete_published(db, image_id)  # labels of a removed image, which were not deleted yet
        delete_maps(self._studies / ".rayapp", image_id)
        return vanished

    def _add_images(
        self, db: sqlite3.Connection, ids: Iterable[str], extensions: Mapping[str, str], hints: dict[str, Any]
    ) -> None:
        now = int(time.time())
        for image_id in ids:
            ext = extensions[image_id]
            if self._source.exists(image_id, ext):
                if self.make_way(db, image_id, self._source.path(image_id, ext)):
                    hints.pop(image_id, None)
                hint = hints[image_id]["image"]["info"] if image_id in hints else {}
                info = {**self._source.info(image_id), **hint}
                insert_image(db, image_id, ext, {"ts": now, **info, "name": self._name(image_id, ext)}, None)
                if image_id in hints and db.execute("DELETE FROM vanished WHERE id = ?", (image_id,)).rowcount:
                    reopen(db, image_id)

    def _name(self, image_id: str, ext: str) -> str:
        """The image's file name, as users know it."""
        path = self._source.path(image_id, ext)
        name = path.name if path.parent == self._studies else image_id + ext
        return name if ext else name + SERIES_EXT

    def _drop_images(self, db: sqlite3.Connection, ids: Iterable[str]) -> None:
        for image_id in ids:
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            if row and not self._source.exists(image_id, row[0]):
                db.execute("INSERT OR REPLACE INTO vanished VALUES(?, ?)", (image_id, entry(db, image_id)))
                delete_image(db, image_id)
                if not self._source.keeps_ids():
                    forget_image(db, image_id)

    def _forget_results(self, db: sqlite3.Connection, ids: Iterable[str]) -> None:
        for image_id in ids:
            forget_results(db, image_id)
