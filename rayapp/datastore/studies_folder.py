"""StudiesFolder: an open studies folder: its lock, its index, and the threads that commit, write back and watch.

Opening imports MONAI Label's document, repairs after a crash and scans the files; closing writes pending changes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from rayapp.datastore import commit, folder_scan, leases
from rayapp.datastore.age_sampler import AgeSampler
from rayapp.datastore.claim import LOCK, FolderClaim
from rayapp.datastore.commit import GroupCommit, commit_error, disk_state
from rayapp.datastore.document import DocumentFile, Entries
from rayapp.datastore.image_source import FolderSource, ImageSource
from rayapp.datastore.index import meta, set_meta, unplaced
from rayapp.datastore.left_out import LeftOutEntries
from rayapp.datastore.reconcile import Reconciler
from rayapp.datastore.records import RecordMapper
from rayapp.datastore.recovery import complete, open_index
from rayapp.datastore.repair import Repair
from rayapp.datastore.revisions import FileStamp, RevisionStore
from rayapp.datastore.scores import ScoreTable
from rayapp.datastore.watch import Watcher
from rayapp.errors import Busy, NotFound
from rayapp.files.durable import make_folder, sync
from rayapp.protocol import FINAL, ORIGINAL

REMOTE_POLL_S = 10.0
NEEDED = 1 << 20
"""Bytes that must be free to open a studies folder."""


log = logging.getLogger(__name__)


class StudiesFolder:
    """The parts of an open folder that `LocalDatastore` works with."""

    def __init__(
        self,
        root: Path,
        *,
        watch: bool,
        poll: float | None,
        settle: float,
        patience: float,
        source: ImageSource | None = None,
    ) -> None:
        """Open the folder; see `LocalDatastore`. Raises Busy, with the reason, if it cannot be read or written."""
        if not root.is_dir():
            raise NotFound("the studies folder does not exist: check the path, or create it")
        self.root = root.resolve()
        self.labels = self.root / folder_scan.LABELS
        self.source = source or FolderSource(self.root)
        self._closing: list[Callable[[], None]] = []
        try:
            self._lock(self.root / ".rayapp", patience)
            self._open(self.root / ".rayapp", settle)
            if watch:
                self._watch(poll)
        except (OSError, sqlite3.OperationalError) as error:
            self._abandon()
            raise Busy(f"the studies folder cannot be opened: {commit_error(error, self.root).detail}") from error
        except BaseException:
            self.close()
            raise

    def _lock(self, hidden: Path, patience: float) -> None:
        """Create the hidden folder and claim it."""
        if state := disk_state(self.root, NEEDED):  # SQLite would try for half a minute, and say less
            raise OSError(state, os.strerror(state))
        make_folder(hidden)
        self._closing.append(FolderClaim(hidden, patience, lost=lambda: commit.end_process()).release)
        if not _locks_hold(hidden / LOCK):
            log.error("file locks have no effect on this file system: let no second server open the studies folder")

    def _abandon(self) -> None:
        """Release the folder after a disk error, ignoring further ones."""
        while self._closing:
            with suppress(OSError, sqlite3.Error, Busy):
                self._closing.pop()()

    def close(self) -> None:
        """Write pending changes and release the folder."""
        while self._closing:
            self._closing.pop()()

    def scan(self) -> bool:
        """Import document edits and scan the folder. True if a file was not complete yet, so that another scan is
        due.
        """
        self.document.import_edits()
        return self.reconciler.scan()

    def sizes(self, counts: Iterable[tuple[str, str, int]]) -> dict[str, int]:
        """Sizes of the store for its status.

        Args:
            counts: rows of the index's table `count`.

        Returns:
            Bytes of the index, its log and the revisions, the number of revisions, and free bytes on the disk.
        """
        stored = {kind: n for kind, _, n in counts if kind.startswith("revision")}
        sides = {"index": "index.db", "log": "index.db-wal"}
        files = {name: FileStamp.of(self.root / ".rayapp" / file) for name, file in sides.items()}
        return {
            **{name: stamp.size if stamp else 0 for name, stamp in files.items()},
            "revisions": stored["revision"],
            "revision_bytes": stored["revision_bytes"],
            "free": shutil.disk_usage(self.root).free,
        }

    def _open(self, hidden: Path, settle: float) -> None:
        for tag in (FINAL, ORIGINAL):
            make_folder(self.labels / tag)
        self.files = RevisionStore(hidden)
        self.left_out = LeftOutEntries(self.root)
        self.index, rebuilt = open_index(hidden)
        self._closing.append(self.index.close)
        self.commit = GroupCommit(self.index.writer)
        self._closing.append(self.commit.close)
        self.commit.claim()
        with self.index.reader() as db:
            last, clean = int(meta(db, "session") or 0), meta(db, "clean") != "0"
        self.session = last + 1
        self.repair = Repair(self.root, index=self.index, commit=self.commit, files=self.files, source=self.source)
        self.records = RecordMapper(self.root, self.files, self.source, self.repair.late)
        self.reconciler = Reconciler(
            self.root,
            index=self.index,
            commit=self.commit,
            files=self.files,
            source=self.source,
            settle=settle,
            session=self.session,
            left_out=self.left_out,
            repair=self.repair,
            touched=lambda: self.document.touch(),
        )
        if rebuilt or not clean:
            self.repair.run(0 if rebuilt else last)
        with self.index.reader() as db:
            self.files.sweep(unplaced(db))
        self._mark(clean=False)
        self._closing.append(self._seal)
        self.document = DocumentFile(
            self.root, index=self.index, commit=self.commit, files=self.files, merge=self._merge(rebuilt)
        )
        self.document.import_edits(opening=True)
        self.reconciler.scan()
        if rebuilt:
            self.commit.do(complete)
        self.age_sampler = AgeSampler(self.index)
        self.scores = ScoreTable(self.index)
        self.age_sampler.sample(FINAL, 1)  # fills its arrays now rather than for the first annotator
        self.scores.catch_up()
        self.document.start()
        self._closing.append(self.document.close)

    def _merge(self, rebuilt: bool) -> Callable[[dict[str, str], Entries, Entries], None]:
        """The function that imports a document. After the index was rebuilt it imports only missing entries, since the
        salvaged ones are newer.
        """
        if rebuilt:
            return lambda names, theirs, _: self.reconciler.merge(names, theirs, theirs)
        return self.reconciler.merge

    def _watch(self, poll: float | None) -> None:
        if poll is None and folder_scan.is_remote(self.root):
            poll = REMOTE_POLL_S
        watcher = Watcher(self.root, concerns=self._concerns, scan=self.scan, poll=poll)
        self._closing.append(watcher.close)

    def _concerns(self, paths: Iterable[Path]) -> bool:
        late = bool(self.repair.late)
        return late or self.document.is_foreign() or self.reconciler.concerns(paths) or self.left_out.changed()

    def _mark(self, *, clean: bool) -> None:
        def apply(db: sqlite3.Connection) -> None:
            set_meta(db, "session", str(self.session))
            set_meta(db, "clean", "1" if clean else "0")
            leases.start(db)
            db.execute("DELETE FROM reopened")  # caches in memory begin anew with the next opening

        self.commit.do(apply)

    def _seal(self) -> None:
        """Sync what was published and mark the store clean, so that the next opening has nothing to repair."""
        self.repair.catch_up()
        for tag in folder_scan.tags(self.labels):
            sync(self.labels / tag)
        sync(self.labels)
        self._mark(clean=not self.repair.late)


def _locks_hold(locked: Path) -> bool:
    """True if a second lock on a locked file is refused; on some network file systems it is not."""
    descriptor = os.open(locked, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
