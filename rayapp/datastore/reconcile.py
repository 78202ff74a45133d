"""Reconciler: updates the index from the studies folder and imports MONAI Label's document.

A scan compares folder and index without blocking writers; each difference is checked again within the commit that
records it. Published files change on the commit thread only, so a difference seen there was made by another program.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.document import NAME, Entries, edited, entry
from rayapp.datastore.image_names import id_of, is_unicode, label_name
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import (
    Index,
    add_revision,
    delete_image,
    forget_image,
    forget_results,
    info_of,
    insert_image,
    put_label,
    reopen,
    set_meta,
    update_image,
    update_label,
)
from rayapp.datastore.interfaces import SERIES_EXT, Author
from rayapp.datastore.left_out import LeftOutEntries
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore
from rayapp.errors import Busy
from rayapp.files.durable import sync

EXTERNAL = Author(user="folder")
"""Author of labels that another program put into the folder."""
CHUNK = 5000
"""Images or labels recorded per commit."""
IMAGES = "images"
"""The part of the folder whose left-out entries a scan of the images finds."""
READERS = 4
"""Threads that copy files into the revisions."""

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
        self._left_out = left_out
        self._touched = touched
        self._scanning = threading.Lock()

    def merge(self, names: Mapping[str, str], theirs: Entries, base: Entries) -> None:
        """Import another program's document.

        Args:
            names: name and description of the study set.
            theirs: entries of the document.
            base: entries of the last document we wrote; only what differs from it is an edit.
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
            with self._index.reader() as db:
                gone = {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, entry FROM vanished")}
            entries = {**gone, **(hints or {})}
            waits = self._scan_images(entries)
            with self._index.reader() as db:
                listed = {row[0] for row in db.execute("SELECT DISTINCT tag FROM label")}
            for tag in sorted(listed.union(folder_scan.tags(self._labels))):
                waits |= self._scan_tag(tag, entries)
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

    def _scan_images(self, hints: Mapping[str, Any]) -> bool:
        with self._index.reader() as db:
            indexed = dict(db.execute("SELECT id, ext FROM image"))
        extensions, problems = self._source.images(indexed)
        new = {i: ext for i, ext in extensions.items() if indexed.get(i) != ext}
        complete = self._source.complete(new, self._settle)
        unfinished = {i: ext for i, ext in new.items() if i not in complete}
        stuck = {i: reason for i, ext in unfinished.items() if (reason := self._source.why_incomplete(i, ext))}
        problems |= {self._source.path(i, unfinished[i]): reason for i, reason in stuck.items()}
        self._left_out.replace(IMAGES, problems)
        for chunk in _chunks([i for i in new if i in complete]):
            self._commit.do(lambda db, chunk=chunk: self._add_images(db, chunk, extensions, hints))  # type: ignore[misc]
        gone = [image_id for image_id in indexed if image_id not in extensions]
        for chunk in _chunks(gone):
            self._commit.do(lambda db, chunk=chunk: self._drop_images(db, chunk))  # type: ignore[misc]
        for chunk in _chunks(sorted(self._source.replaced() & indexed.keys())):
            self._commit.do(lambda db, chunk=chunk: self._forget_results(db, chunk))  # type: ignore[misc]
        if complete or gone:
            log.info("%d images added, %d removed", len(complete), len(gone))
            self._touched()
        return len(stuck) < len(unfinished)

    def _add_images(
        self, db: sqlite3.Connection, ids: Iterable[str], extensions: Mapping[str, str], hints: Mapping[str, Any]
    ) -> None:
        now = int(time.time())
        for image_id in ids:
            ext = extensions[image_id]
            if self._source.exists(image_id, ext):
                hint = hints[image_id]["image"]["info"] if image_id in hints else {}
                info = {**self._source.info(image_id), **hint}
                insert_image(db, image_id, ext, {"ts": now, **info, "name": self._name(image_id, ext)}, None)
                if image_id in hints and db.execute("DELETE FROM vanished WHERE id = ?", (image_id,)).rowcount:
                    reopen(db, image_id)

    def _name(self, image_id: str, ext: str) -> str:
        """The image's file name, as people know it."""
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

    def _scan_tag(self, tag: str, hints: Mapping[str, Any]) -> bool:
        with self._index.reader() as db:
            rows = {
                label_name(image_id, ext): (image_id, ext, FileStamp(size=size, mtime_ns=mtime_ns))
                for image_id, ext, size, mtime_ns in db.execute(
                    "SELECT image_id, ext, size, mtime_ns FROM label WHERE tag = ?", (tag,)
                )
            }
            numbers: dict[str, int] = dict(db.execute("SELECT image_id, number FROM label WHERE tag = ?", (tag,)))
            files, problems = folder_scan.files(self._labels / tag)
            labelled = {image_id for image_id, _, _ in rows.values()}
            loose = _unindexed(files.keys() - rows.keys(), tag, hints)
            adopt = {
                name: (image_id, ext)
                for name, (image_id, ext) in loose.items()
                if image_id not in labelled and db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone()
            }
        adopt |= {n: (i, ext) for n, (i, ext, stamp) in rows.items() if n in files and files[n] != stamp}
        missing = [i for name, (i, _, _) in rows.items() if name not in files]
        if missing:
            self._commit.do(lambda db: self._drop_labels(db, tag, missing, numbers))
        waits = bool(adopt) and self._adopt(tag, adopt, hints, numbers, problems)
        self._left_out.replace(f"{folder_scan.LABELS}/{tag}", problems)
        if adopt or missing:
            log.info("%d labels added or edited in the folder, %d removed", len(adopt), len(missing))
            self._touched()
        return waits

    def _drop_labels(self, db: sqlite3.Connection, tag: str, ids: Iterable[str], numbers: Mapping[str, int]) -> None:
        for image_id in ids:
            if _number(db, image_id, tag) != numbers.get(image_id, 0):
                continue  # saved since the folder was listed; its file may not be published yet
            row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
            if row and not (self._labels / tag / label_name(image_id, row[0])).exists():
                db.execute("DELETE FROM label WHERE image_id = ? AND tag = ?", (image_id, tag))

    def adopt_unseen(self, db: sqlite3.Connection, tag: str, image_id: str, ext: str | None = None) -> None:
        """Record what another program wrote to a label's file and no scan has seen, before the file is replaced.

        Call on the commit thread, within a change.

        Args:
            db: the writer connection.
            tag: the label's tag.
            image_id: its image.
            ext: extension of the file about to be written; None if the label is about to be removed.

        Raises:
            Busy: the other program is still writing.
        """
        row = db.execute("SELECT ext FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
        for each in dict.fromkeys(known for known in (row and row[0], ext) if known is not None):
            path = self._labels / tag / label_name(image_id, each)
            stamp = FileStamp.of(path)
            if stamp is None or self._is_ours(db, image_id, tag, each, stamp):
                continue
            pair = self._keep(path, each)
            if pair is None:
                raise Busy(f"another program is writing label {tag} of image {image_id!r}: try again in a second")
            sync(pair[0].path.parent)
            self._record_one(db, image_id, tag, *pair, {})
            self._touched()

    def _is_ours(self, db: sqlite3.Connection, image_id: str, tag: str, ext: str, stamp: FileStamp) -> bool:
        """True if the published file is a recorded revision, though perhaps not the newest, which is published next."""
        return (
            db.execute(
                "SELECT 1 FROM revision WHERE image_id = ? AND tag = ? AND ext = ? AND size = ? AND mtime_ns = ?",
                (image_id, tag, ext, stamp.size, stamp.mtime_ns),
            ).fetchone()
            is not None
        )

    def _adopt(
        self,
        tag: str,
        names: Mapping[str, tuple[str, str]],
        hints: Mapping[str, Any],
        numbers: Mapping[str, int],
        problems: dict[Path, str],
    ) -> bool:
        """Store the files of a tag's folder as revisions. True if one of them was not complete yet; those that rest in
        a state that cannot be stored are added to `problems`.
        """
        home = self._labels / tag
        complete = folder_scan.settled({name: home / name for name in names}, self._settle)
        waits = False
        for path in (home / name for name in names if name not in complete):
            if folder_scan.rests(path):
                problems[path] = folder_scan.EMPTY
            else:
                waits = True
        with ThreadPoolExecutor(READERS) as pool:
            for chunk in _chunks(sorted(complete)):
                kept = pool.map(lambda name: self._keep_or_say(home / name, names[name][1]), chunk)
                readable = {}
                for name, pair in zip(chunk, kept, strict=True):
                    if isinstance(pair, str):
                        problems[home / name] = pair
                    elif pair is None:
                        waits = True
                    else:
                        readable[names[name][0]] = pair
                self._commit.do(
                    lambda db, files=readable: self._record(db, tag, files, hints, numbers),  # type: ignore[misc]
                    folders={pair[0].path.parent for pair in readable.values()},
                )
        return waits

    def _keep_or_say(self, path: Path, ext: str) -> tuple[RevisionFile, FileStamp] | str | None:
        """The file as a revision; None if it changed while it was copied; the reason if it cannot be read."""
        try:
            with path.open("rb"):
                pass
        except FileNotFoundError:
            return None
        except OSError as error:
            return folder_scan.why(error)
        return self._keep(path, ext)

    def _keep(self, path: Path, ext: str) -> tuple[RevisionFile, FileStamp] | None:
        """The file as a revision; None if it changed while it was copied."""
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
        files: Mapping[str, tuple[RevisionFile, FileStamp]],
        hints: Mapping[str, Any],
        numbers: Mapping[str, int],
    ) -> None:
        for image_id, (kept, stamp) in files.items():
            # If it was replaced or edited since it was read, the next scan compares again.
            if (
                _number(db, image_id, tag) == numbers.get(image_id, 0)
                and FileStamp.of(self._labels / tag / label_name(image_id, kept.ext)) == stamp
            ):
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
        """Make the file the current label: as an existing revision if it equals one, else as a new one.

        An edited label keeps its info. A label that reappears, or is new, takes its revision's info, then the hint's.
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
        info = {"ts": stamp.mtime_ns // 1_000_000_000, "name": label_name(image_id, kept.ext)}
        if label is None:
            info = {**info, **(info_of(same[2]) if same else {}), **hint}
        else:
            info = {**info_of(label[2]), **({} if same else info)}
        if same is not None:
            number = same[1]
        else:
            number = add_revision(
                db, image_id, tag, kept, stamp, author=EXTERNAL, model_version=None, info=info, staged=None
            )
        put_label(db, image_id, tag, kept, stamp, number=number, session=self._session, info=info)


def _number(db: sqlite3.Connection, image_id: str, tag: str) -> int:
    """Number of the label's newest revision; 0 if there is no label."""
    row = db.execute("SELECT number FROM label WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
    return int(row[0]) if row else 0


def _unindexed(names: Iterable[str], tag: str, hints: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{file name: (image id, extension)} of the files without an index entry, split by the hints or else by name."""
    hinted = {
        label_name(image_id, hint["labels"][tag]["ext"]): (image_id, hint["labels"][tag]["ext"])
        for image_id, hint in hints.items()
        if tag in hint["labels"]
    }
    split = ((name, hinted.get(name) or _split(name)) for name in names)
    return {name: parts for name, parts in split if parts}


def _split(name: str) -> tuple[str, str] | None:
    """(image id, extension) of a label's file, None for one that no image's label is called."""
    parts = folder_scan.split_name(name)
    if parts is None:
        return None
    image_id, ext = id_of(parts[0]), parts[1]
    return (image_id, ext) if label_name(image_id, ext) == name else None


def _chunks(items: list[str]) -> Iterable[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk
