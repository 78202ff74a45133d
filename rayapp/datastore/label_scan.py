"""LabelScan: imports label files that other programs add, change or remove in the studies folder.

The server itself changes published files on the commit thread only, so a difference seen there was made by another
program.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rayapp.datastore import folder_scan
from rayapp.datastore.commit import GroupCommit, chunks
from rayapp.datastore.image_names import id_of, label_name
from rayapp.datastore.index import Index, add_revision, info_of, put_label
from rayapp.datastore.interfaces import Author
from rayapp.datastore.left_out import LeftOutEntries
from rayapp.datastore.revisions import FileStamp, RevisionFile, RevisionStore
from rayapp.errors import Busy
from rayapp.files.durable import sync

EXTERNAL = Author(user="folder")
"""Author of labels that another program put into the folder."""
READERS = 4
"""Threads that copy files into the revisions."""

log = logging.getLogger(__name__)


class LabelScan:
    """Brings the labels of the index up to date. One scan at a time; `adopt_unseen` on the commit thread."""

    def __init__(
        self,
        labels: Path,
        *,
        index: Index,
        commit: GroupCommit,
        files: RevisionStore,
        settle: float,
        session: int,
        left_out: LeftOutEntries,
        late: Collection[tuple[str, str]],
        touched: Callable[[], None],
    ) -> None:
        """Prepare it.

        Args:
            labels: the folder `labels/`.
            index: the index.
            commit: the index's writer.
            files: stores the files as revisions.
            settle: seconds for which a file must be unchanged to count as complete.
            session: number of this opening of the folder.
            left_out: receives the files that cannot be imported.
            late: (image id, tag) of labels whose own publication or removal is still due.
            touched: called after a change.
        """
        self._labels = labels
        self._index = index
        self._commit = commit
        self._files = files
        self._settle = settle
        self._session = session
        self._left_out = left_out
        self._late = late
        self._touched = touched

    def scan(self, tag: str, hints: Mapping[str, Any]) -> bool:
        """Compare one tag's folder with the index and update the index.

        Args:
            tag: the tag.
            hints: document entries with infos for labels that may be new.

        Returns:
            True if a file was not complete yet.
        """
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
            # Beside a label, a file with another extension is an edit, unless it is one of ours that is outdated.
            adopt = {
                name: (image_id, ext)
                for name, (image_id, ext) in loose.items()
                if db.execute("SELECT 1 FROM image WHERE id = ?", (image_id,)).fetchone()
                and not (image_id in labelled and self._is_ours(db, image_id, tag, ext, files[name]))
            }
        adopt |= {n: (i, ext) for n, (i, ext, stamp) in rows.items() if n in files and files[n] != stamp}
        # A file that is still to be published or removed is ours, not another program's.
        adopt = {name: (image_id, ext) for name, (image_id, ext) in adopt.items() if (image_id, tag) not in self._late}
        missing = [i for name, (i, _, _) in rows.items() if name not in files and (i, tag) not in self._late]
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
        """Record what another program wrote to a label's file since the last scan, before the file is replaced.

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
        for each, path in self.files(tag, image_id, ext if row is None else row[0]):
            stamp = FileStamp.of(path)
            if stamp is None or self._is_ours(db, image_id, tag, each, stamp):
                continue
            pair = self._keep(path, each)
            if pair is None:
                raise Busy(f"another program is writing label {tag} of image {image_id!r}: try again in a second")
            sync(pair[0].path.parent)
            self._record_one(db, image_id, tag, *pair, {})
            self._touched()

    def delete_published(self, db: sqlite3.Connection, image_id: str) -> None:
        """Delete the label files of a vanished image when another image takes its name; their revisions stay.

        Files that another program wrote there meanwhile belong to the new image and stay. Call on the commit thread,
        while the revisions are still the vanished image's.
        """
        for tag in folder_scan.tags(self._labels):
            for ext, path in self.files(tag, image_id, None):
                stamp = FileStamp.of(path)
                if stamp is not None and self._is_ours(db, image_id, tag, ext, stamp):
                    path.unlink(missing_ok=True)
                    sync(path.parent)

    def files(self, tag: str, image_id: str, ext: str | None) -> list[tuple[str, Path]]:
        """(extension, path) of the label's files, in every format.

        Args:
            tag: the label's tag.
            image_id: its image.
            ext: its extension, if known.
        """
        exts = dict.fromkeys((*folder_scan.IMAGE_EXTS, *(() if ext is None else (ext,))))
        paths = [(each, self._labels / tag / label_name(image_id, each)) for each in exts]
        return [(each, path) for each, path in paths if path.exists()]

    def doomed(self, image_id: str, tag: str, ext: str) -> list[tuple[str, str, str]]:
        """(image id, tag, extension) of each file to delete when a label with this extension is deleted."""
        return [(image_id, tag, each) for each in dict.fromkeys((ext, *(e for e, _ in self.files(tag, image_id, ext))))]

    def _is_ours(self, db: sqlite3.Connection, image_id: str, tag: str, ext: str, stamp: FileStamp) -> bool:
        """True if the published file is a recorded revision, possibly not the newest one, which is then about to be
        published.
        """
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
        """Store the files of a tag's folder as revisions.

        Files that no longer change and cannot be stored are added to `problems`.

        Returns:
            True if one of the files was not complete yet.
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
            for chunk in chunks(sorted(complete)):
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
                    publish=lambda outdated: self._delete(tag, outdated),
                )
        return waits

    def _keep_or_say(self, path: Path, ext: str) -> tuple[RevisionFile, FileStamp] | str | None:
        """The file as a revision; None if it changed during the copy; the reason if it cannot be read."""
        try:
            with path.open("rb"):
                pass
        except FileNotFoundError:
            return None
        except OSError as error:
            return folder_scan.why(error)
        return self._keep(path, ext)

    def _keep(self, path: Path, ext: str) -> tuple[RevisionFile, FileStamp] | None:
        """The file as a revision; None if it changed during the copy."""
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
    ) -> list[tuple[Path, FileStamp]]:
        """Record the files as labels. Returns the files of other formats that these labels replace."""
        outdated = []
        for image_id, (kept, stamp) in files.items():
            # If it was replaced, removed or edited since it was read, the next scan compares again.
            if (
                _number(db, image_id, tag) == numbers.get(image_id, 0)
                and not db.execute("SELECT 1 FROM doomed WHERE image_id = ? AND tag = ?", (image_id, tag)).fetchone()
                and FileStamp.of(self._labels / tag / label_name(image_id, kept.ext)) == stamp
            ):
                hint = hints.get(image_id, {}).get("labels", {}).get(tag, {})
                self._record_one(db, image_id, tag, kept, stamp, hint.get("info", {}))
                for ext, path in self.files(tag, image_id, kept.ext):
                    other = FileStamp.of(path)
                    if ext != kept.ext and other and self._is_ours(db, image_id, tag, ext, other):
                        outdated.append((path, other))
        return outdated

    def _delete(self, tag: str, outdated: Iterable[tuple[Path, FileStamp]]) -> None:
        """Delete outdated files of ours, unless another program has written them since. A file that cannot be deleted
        still counts as ours.
        """
        for path, stamp in outdated:
            try:
                if FileStamp.of(path) == stamp:
                    path.unlink()
            except OSError as error:
                log.warning("an outdated file of label %s could not be deleted: %s", tag, error.strerror)

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
            # A file that was only touched is still this revision's, also once a newer one is to be published.
            db.execute(
                "UPDATE revision SET size = ?, mtime_ns = ? WHERE image_id = ? AND tag = ? AND number = ?",
                (stamp.size, stamp.mtime_ns, image_id, tag, number),
            )
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
    """{file name: (image id, extension)} of the files without an index entry, split by the hints, or else by name."""
    hinted = {
        label_name(image_id, hint["labels"][tag]["ext"]): (image_id, hint["labels"][tag]["ext"])
        for image_id, hint in hints.items()
        if tag in hint["labels"]
    }
    split = ((name, hinted.get(name) or _split(name)) for name in names)
    return {name: parts for name, parts in split if parts}


def _split(name: str) -> tuple[str, str] | None:
    """(image id, extension) of a label's file; None for a name that no image's label can have."""
    parts = folder_scan.split_name(name)
    if parts is None:
        return None
    image_id, ext = id_of(parts[0]), parts[1]
    return (image_id, ext) if label_name(image_id, ext) == name else None
