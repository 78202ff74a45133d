"""RevisionStore: the content-addressed files under `.rayapp/revisions/`, and the staging folder beside it.

A revision is `revisions/<first two hex digits>/<SHA-256><ext>` and is never written again. The file published under
`labels/` is a copy, so that a program that edits it in place cannot alter a revision. Thread-safe.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rayapp.errors import BadRequest
from rayapp.files.durable import new_path, sync

STALE_S = 24 * 3600
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""Errors of `link` on exFAT, on many network file systems, and on a file with too many names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RevisionFile:
    """The file of one revision; `sha` is its SHA-256 in hex."""

    sha: str
    ext: str
    size: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """Size and modification time of a file, by which changes are recognised without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """The file's stamp; None if the file does not exist."""
        try:
            stat = path.stat()
        except OSError:
            return None
        return cls(size=stat.st_size, mtime_ns=stat.st_mtime_ns)


class RevisionStore:
    """The revision and staging files of one store, under `root` (`<studies>/.rayapp`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._revisions = root / "revisions"
        self.staging = root / "staging"
        self.staging.mkdir(parents=True, exist_ok=True)
        self._revisions.mkdir(exist_ok=True)
        sync(root)
        sync(self._revisions)
        self._shards = {entry.name for entry in self._revisions.iterdir()}
        """Durable folders of revisions."""
        self._making_shard = threading.Lock()

    def stage(self, suffix: str) -> Path:
        """A new path on the store's file system. Raises BadRequest if `suffix` is not a file name extension."""
        return new_path(self.staging, suffix)

    def staged(self, path: Path) -> Path:
        """Return `path` if it lies in the staging folder. Raises BadRequest otherwise: callers must not name paths."""
        if path.parent != self.staging:
            raise BadRequest(
                "the file was not staged in this datastore: request a path from `stage` and write it there"
            )
        return path

    def path(self, sha: str, ext: str) -> Path:
        """Path of a revision's file."""
        return self._revisions / sha[:2] / (sha + ext)

    def keep(self, staged: Path, ext: str) -> RevisionFile:
        """Hard-link the staged file to its revision path; durable once the folder of the returned path is synced.

        The staged name remains until the caller deletes it, so that an interrupted save can be repeated.
        """
        with staged.open("rb") as file:
            os.fsync(file.fileno())
            sha = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        kept = RevisionFile(sha=sha, ext=ext, size=size, path=self.path(sha, ext))
        self._make_shard(kept.path.parent)
        try:
            link_or_copy(staged, kept.path)
        except FileExistsError:
            if self.is_intact(kept):
                return kept
            # The file, from an earlier save of the same content, has been damaged: replace it.
            fresh = self.stage(ext)
            link_or_copy(staged, fresh)
            fresh.rename(kept.path)
        kept.path.chmod(0o444)
        return kept

    def _make_shard(self, folder: Path) -> None:
        """Create the folder of a revision, durably, unless it exists."""
        if folder.name in self._shards:
            return
        with self._making_shard:
            folder.mkdir(exist_ok=True)
            sync(self._revisions)
            self._shards.add(folder.name)

    def is_intact(self, kept: RevisionFile) -> bool:
        """True if the revision's file exists and its content matches its digest."""
        try:
            with kept.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == kept.sha
        except OSError:
            return False

    def copy(self, kept: RevisionFile, mtime_ns: int) -> tuple[Path, FileStamp]:
        """Copy the revision durably into the staging folder, to be renamed to its published path.

        Returns:
            The copy, and its stamp.
        """
        target = self.stage(kept.ext)
        shutil.copyfile(kept.path, target)
        os.utime(target, ns=(mtime_ns, mtime_ns))
        sync(target)
        stamp = FileStamp.of(target)
        assert stamp is not None
        return target, stamp

    def discard(self, path: Path) -> Path:
        """Move a file or folder into staging, where no reader sees it. Returns the new path, for the caller to
        delete.
        """
        gone = self.staging / uuid.uuid4().hex
        path.rename(gone)
        return gone

    def drop(self, staged: Path) -> None:
        """Delete a staged file or folder. One that cannot be deleted is swept later."""
        try:
            delete(staged)
        except OSError as error:
            log.warning("a staged file could not be deleted and is swept later: %s", error.strerror)

    def sweep(self, used: Collection[str]) -> None:
        """Delete old leftovers of uploads and crashes from staging, except the files with these names."""
        with os.scandir(self.staging) as entries:
            for entry in entries:
                if entry.name not in used and time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_S:
                    self.drop(Path(entry.path))


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a durable file to a second name; on a file system without hard links, make a durable copy.

    Raises:
        FileExistsError: if the target exists.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "the file exists", str(target)) from None
        fresh = source.with_name(uuid.uuid4().hex)
        shutil.copyfile(source, fresh)
        sync(fresh)
        fresh.rename(target)


def is_same(one: Path, other: Path) -> bool:
    """True if both names are of one file, or of files with the same content, as `link_or_copy` leaves them."""
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def delete(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
