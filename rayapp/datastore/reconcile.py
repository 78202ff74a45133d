"""Reconciler: brings the index up to what the studies folder holds, and takes foreign documents over.

It looks without stopping anyone and then has each finding checked again in the commit that records it: published
files change on the commit thread only, so there a difference between file and index is somebody else's work.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit, sync
from rayapp.datastore.document import NAME, Entries, edited, entry
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import (
    Index,
    add_revision,
    delete_image,
    info_of,
    insert_image,
    put_label,
    set_meta,
    update_image,
    update_label,
)
from rayapp.datastore.interfaces import SERIES_EXT, Author
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore, delete

OUTSIDE = Author(user="folder")
"""The author of what appeared in the folder without passing through the store."""
CHUNK = 5000
READERS = 4

log = logging.getLogger(__name__)


class Reconciler:
    """Any thread may call, the commit thread excepted; scans run one at a time."""

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
        touched: Callable[[], None],
    ) -> None:
        self._studies = studies
        self._labels = studies / folder_scan.LABELS
        self._index = index
        self._commit = commit
        self._files = files
        self._source = source
        self._settle = settle
        self._session = session
        self._touched = touched
        self._scanning = threading.Lock()

    def repair(self, session: int) -> None:
        """Finish what the crashed `session` (or a later one) had committed but not durably published or removed."""
        with self._index.reader() as db:
            rows = db.execute(
                "SELECT image_id, tag, ext, sha, size, mtime_ns, number FROM label WHERE session >= ?", (session,)
            ).fetchall()
            for image_id, tag, ext, sha, size, mtime_ns, number in rows:
                earlier = db.execute(
                    "SELECT ext, size, mtime_ns FROM revision WHERE image_id = ? AND tag = ? AND number < ?",
                    (image_id, tag, number),
                ).fetchall()
                # Earlier revisions that are published still; what is neither these nor the label was put by hand.
                left = {old for old, *stamp in earlier if self._is(tag, image_id + old, *stamp)}
                for old in left - {ext}:
                    (self._labels / tag / (image_id + old)).unlink()
                path = self._labels / tag / (image_id + ext)
                if ext in left or not path.exists():
                    kept = RevisionFile(sha=sha, ext=ext, size=size, path=self._files.path(sha, ext))
                    staged, _ = self._files.copy(kept, mtime_ns)
                    path.parent.mkdir(exist_ok=True)
                    staged.rename(path)
            self._finish_removals(db)
        self._commit.do(lambda db: db.execute("DELETE FROM doomed").rowcount)
        for tag in folder_scan.tags(self._labels):
            sync(self._labels / tag)
        sync(self._labels)

    def _finish_removals(self, db: sqlite3.Connection) -> None:
        images = db.execute(
            "SELECT image_id, ext FROM doomed WHERE tag = '' AND image_id NOT IN (SELECT id FROM image)"
        ).fetchall()
        for image_id, ext in images:
            delete(self._studies / (image_id + ext))
        published = db.execute(
            "SELECT r.image_id, r.tag, r.ext, r.size, r.mtime_ns FROM revision AS r JOIN doomed USING(image_id, tag)"
            " WHERE (r.image_id, r.tag) NOT IN (SELECT image_id, tag FROM label)"
        ).fetchall()
        for image_id, tag, ext, *stamp in published:
            if self._is(tag, image_id + ext, *stamp):
                (self._labels / tag / (image_id + ext)).unlink()

    def _is(self, tag: str, name: str, size: int, mtime_ns: int) -> bool:
        return FileStamp.of(self._labels / tag / name) == FileStamp(size=size, mtime_ns=mtime_ns)

    def merge(self, names: Mapping[str, str], theirs: Entries, base: Entries) -> None:
        """Take over what a foreign document says otherwise than `base`, then the entries that are new in it."""

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
        """Whether any of the changed paths says something that the index does not know."""
        with self._index.reader() as db:
            return any(self._is_news(db, path) for path in paths)

    def scan(self, hints: Mapping[str, Any] | None = None) -> bool:
        """Look at the whole folder; `hints` are entries for images and labels that may be new.

        True if something was not whole yet, so that another look is due soon.
        """
        with self._scanning:
            if not (self._studies / ".rayapp").is_dir():
                log.error("the studies folder is out of reach; nothing is changed")
                return True
            with self._index.reader() as db:
                gone = {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, entry FROM vanished")}
            entries = {**gone, **(hints or {})}
            waits = self._scan_images(entries)
            with self._index.reader() as db:
                listed = {row[0] for row in db.execute("SELECT DISTINCT tag FROM label")}
            for tag in sorted(listed.union(folder_scan.tags(self._labels))):
                waits |= self._scan_tag(tag, entries)
            return waits

    def _is_news(self, db: sqlite3.Connection, path: Path) -> bool:
        if path.name.startswith(".") or path.name in (folder_scan.LABELS, NAME):
            return False
        if path.parent == self._studies:
            image_id, _ = folder_scan.split_name(path.name) or (path.name, "")
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            return (row is not None and image_id + row[0] == path.name) != path.exists()
        if path.parent == self._labels:
            return path.is_dir()
        stamp = FileStamp.of(path)
        dots = [i for i, letter in enumerate(path.name) if letter == "."]
        for image_id, ext in ((path.name[:i], path.name[i:]) for i in dots):
            row = db.execute(
                "SELECT size, mtime_ns FROM label WHERE image_id = ? AND tag = ? AND ext = ?",
                (image_id, path.parent.name, ext),
            ).fetchone()
            if row is not None:
                return stamp != FileStamp(size=row[0], mtime_ns=row[1])
        return stamp is not None

    def _scan_images(self, hints: Mapping[str, Any]) -> bool:
        with self._index.reader() as db:
            known = dict(db.execute("SELECT id, ext FROM image"))
        found, refused = self._source.images(known)
        if refused:
            log.warning("%d images have names that cannot serve as ids and are skipped", refused)
        new = {i: ext for i, ext in found.items() if known.get(i) != ext}
        whole = self._source.whole(new, self._settle)
        for chunk in _chunks([i for i in new if i in whole]):
            self._commit.do(lambda db, chunk=chunk: self._add_images(db, chunk, found, hints))  # type: ignore[misc]
        gone = [image_id for image_id in known if image_id not in found]
        for chunk in _chunks(gone):
            self._commit.do(lambda db, chunk=chunk: self._drop_images(db, chunk))  # type: ignore[misc]
        if whole or gone:
            log.info("%d images came, %d went", len(whole), len(gone))
            self._touched()
        return len(whole) < len(new)

    def _add_images(
        self, db: sqlite3.Connection, ids: Iterable[str], found: Mapping[str, str], hints: Mapping[str, Any]
    ) -> None:
        now = int(time.time())
        for image_id in ids:
            ext = found[image_id]
            if self._source.there(image_id, ext):
                hint = hints[image_id]["image"]["info"] if image_id in hints else {}
                info = {**self._source.info(image_id), **hint}
                insert_image(db, image_id, ext, {"ts": now, **info, "name": image_id + (ext or SERIES_EXT)}, None)
                if image_id in hints:
                    db.execute("DELETE FROM vanished WHERE id = ?", (image_id,))

    def _drop_images(self, db: sqlite3.Connection, ids: Iterable[str]) -> None:
        for image_id in ids:
            row = db.execute("SELECT ext FROM image WHERE id = ?", (image_id,)).fetchone()
            if row and not self._source.there(image_id, row[0]):
                db.execute("INSERT OR REPLACE INTO vanished VALUES(?, ?)", (image_id, entry(db, image_id)))
                delete_image(db, image_id)

    def _scan_tag(self, tag: str, hints: Mapping[str, Any]) -> bool:
        with self._index.reader() as db:
            rows = {
                image_id + ext: (image_id, ext, FileStamp(size=size, mtime_ns=mtime_ns))
                for image_id, ext, size, mtime_ns in db.execute(
                    "SELECT image_id, ext, size, mtime_ns FROM label WHERE tag = ?", (tag,)
                )
            }
            files = folder_scan.files(self._labels / tag)
            labelled = {image_id for image_id, _, _ in rows.values()}
            loose = _loose(files.keys() - rows.keys(), tag, hints)
            adopt = {
                name: (image_id, ext)
                for name, (image_id, ext) in loose.items()
                if image_id not in labelled and db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone()
            }
        adopt |= {n: (i, ext) for n, (i, ext, stamp) in rows.items() if n in files and files[n] != stamp}
        missing = [i for name, (i, _, _) in rows.items() if name not in files]
        if missing:
            self._commit.do(lambda db: self._drop_labels(db, tag, missing))
        waits = bool(adopt) and self._adopt(tag, adopt, hints)
        if adopt or missing:
            log.info("%d labels are new or edited in the folder, %d were removed from it", len(adopt), len(missing))
            self._touched()
        return waits

    def _drop_labels(self, db: sqlite3.Connection, tag: str, ids: Iterable[str]) -> None:
        for image_id in ids:
            row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            if row and not (self._labels / tag / (image_id + row[0])).exists():
                db.execute("DELETE FROM label WHERE image_id = ? AND tag = ?", (image_id, tag))

    def _adopt(self, tag: str, names: Mapping[str, tuple[str, str]], hints: Mapping[str, Any]) -> bool:
        """Take what lies in the tag's folder into the revisions; True if some of it was not whole yet."""
        where = self._labels / tag
        whole = folder_scan.settled({name: where / name for name in names}, self._settle)
        adopted = 0
        with ThreadPoolExecutor(READERS) as pool:
            for chunk in _chunks(sorted(whole)):
                kept = pool.map(lambda name: self._keep(where / name, names[name][1]), chunk)
                taken = {names[name][0]: pair for name, pair in zip(chunk, kept, strict=True) if pair}
                self._commit.do(
                    lambda db, taken=taken: self._record(db, tag, taken, hints),  # type: ignore[misc]
                    folders={pair[0].path.parent for pair in taken.values()},
                )
                adopted += len(taken)
        return adopted < len(names)

    def _keep(self, path: Path, ext: str) -> tuple[RevisionFile, FileStamp] | None:
        """The file as a revision; None if it changed while it was read."""
        staged = self._files.stage(ext)
        try:
            before = FileStamp.of(path)
            shutil.copyfile(path, staged)
            if before is None or FileStamp.of(path) != before:
                return None
            return self._files.keep(staged, ext), before
        except FileNotFoundError:
            return None
        finally:
            staged.unlink(missing_ok=True)

    def _record(
        self,
        db: sqlite3.Connection,
        tag: str,
        taken: Mapping[str, tuple[RevisionFile, FileStamp]],
        hints: Mapping[str, Any],
    ) -> None:
        for image_id, (kept, stamp) in taken.items():
            # Saved over or edited since it was read? Then the next scan compares again.
            if FileStamp.of(self._labels / tag / (image_id + kept.ext)) == stamp:
                hint = hints.get(image_id, {}).get("labels", {}).get(tag, {})
                self._record_one(db, image_id, tag, kept, stamp, hint.get("info", {}))

    def _record_one(
        self,
        db: sqlite3.Connection,
        image_id: str,
        tag: str,
        kept: RevisionFile,
        stamp: FileStamp,
        hint: Mapping[str, Any],
    ) -> None:
        """Let the file be the label: as the revision it is if it is one, else as a new one.

        An edited label keeps its info; one that comes back, or is new, has its revision's and then the hint's.
        """
        label = db.execute(
            "SELECT sha, number, info FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)
        ).fetchone()
        revision = db.execute(
            "SELECT sha, number, info FROM revision WHERE image_id = ? AND tag = ? AND sha = ? AND ext = ?"
            " ORDER BY number DESC",
            (image_id, tag, kept.sha, kept.ext),
        ).fetchone()
        same = revision if label is None else label if label[0] == kept.sha else None
        info = {"ts": stamp.mtime_ns // 1_000_000_000, "name": image_id + kept.ext}
        if label is None:
            info = {**info, **(info_of(same[2]) if same else {}), **hint}
        else:
            info = {**info_of(label[2]), **({} if same else info)}
        if same is not None:
            number = same[1]
        else:
            number = add_revision(
                db, image_id, tag, kept, stamp, author=OUTSIDE, model_version=None, info=info, staged=None
            )
        put_label(db, image_id, tag, kept, stamp, number=number, session=self._session, info=info)


def _loose(names: Iterable[str], tag: str, hints: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{file name: (image id, extension)} of files without an index entry, as a hint or else the name tells."""
    hinted = {
        image_id + hint["labels"][tag]["ext"]: (image_id, hint["labels"][tag]["ext"])
        for image_id, hint in hints.items()
        if tag in hint["labels"]
    }
    split = ((name, hinted.get(name) or folder_scan.split_name(name)) for name in names)
    return {name: found for name, found in split if found}


def _chunks(items: list[str]) -> Iterable[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk
