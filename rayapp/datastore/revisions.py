"""RevisionStore: the content-addressed files under `.rayapp/revisions/`, and the staging folder beside them.

A revision is `revisions/<first two hex digits>/<SHA-256><ext>`; it is never written again. What is published under
`labels/` is a copy, so that a program that edits a published file in place cannot reach a revision. Any number of
threads may call at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore.commit import sync
from rayapp.errors import BadRequest

STALE_S = 24 * 3600
_EXT = re.compile(r"(\.\w{1,16}){1,3}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RevisionFile:
    """One revision's file."""

    sha: str
    ext: str
    size: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """What tells one state of a published file from another without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """The file's stamp; None if there is no file."""
        try:
            stat = path.stat()
        except OSError:
            return None
        return cls(size=stat.st_size, mtime_ns=stat.st_mtime_ns)


class RevisionStore:
    """The files of one store, under `root` (`<studies>/.rayapp`)."""

    def __init__(self, root: Path) -> None:
        self._revisions = root / "revisions"
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        if not self._revisions.exists():
            # All shards at once, renamed into place: saving never makes a folder, and so never has to sync two.
            fresh = self._staging / uuid.uuid4().hex
            for shard in range(256):
                (fresh / f"{shard:02x}").mkdir(parents=True)
            sync(fresh)
            fresh.rename(self._revisions)
            sync(root)
        self._sweep()

    def stage(self, suffix: str) -> Path:
        """A new path on the same file system. Raises BadRequest for a suffix that is not an extension."""
        return self._staging / (uuid.uuid4().hex + checked_ext(suffix))

    def staged(self, path: Path) -> Path:
        """`path` if `stage` gave it out. Raises BadRequest for any other, so that no caller can name a path."""
        if path.parent != self._staging:
            raise BadRequest("only a file that was staged in this datastore can be taken over")
        return path

    def path(self, sha: str, ext: str) -> Path:
        """Where a revision lies."""
        return self._revisions / sha[:2] / (sha + ext)

    def keep(self, staged: Path, ext: str) -> RevisionFile:
        """Link the staged file into place under its digest; durable once the returned path's folder is synced.

        The staged name stays until the caller removes it, so that a save cut short can be made again.
        """
        with staged.open("rb") as file:
            os.fsync(file.fileno())
            sha = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        path = self.path(sha, ext)
        with suppress(FileExistsError):
            path.hardlink_to(staged)
            path.chmod(0o444)
        return RevisionFile(sha=sha, ext=ext, size=size, path=path)

    def copy(self, kept: RevisionFile, mtime_ns: int) -> tuple[Path, FileStamp]:
        """A durable private copy in staging, to be renamed into its published place, and its stamp there."""
        target = self.stage(kept.ext)
        shutil.copyfile(kept.path, target)
        os.utime(target, ns=(mtime_ns, mtime_ns))
        sync(target)
        stamp = FileStamp.of(target)
        assert stamp is not None
        return target, stamp

    def discard(self, path: Path) -> Path:
        """Rename a file or folder into staging, out of everybody's sight; the caller deletes what is returned."""
        gone = self._staging / uuid.uuid4().hex
        path.rename(gone)
        return gone

    def _sweep(self) -> None:
        """Delete what uploads and crashes left in staging long ago."""
        with os.scandir(self._staging) as entries:
            for entry in entries:
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_S:
                    delete(Path(entry.path))


def delete(path: Path) -> None:
    """Delete a file or a folder; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def checked_ext(ext: str) -> str:
    """Return `ext` if it is "" or up to three short suffixes such as `.nii.gz`. Raises BadRequest."""
    if ext and not _EXT.fullmatch(ext):
        raise BadRequest(f"{ext[:40]!r} is not a file name extension such as .nii.gz")
    return ext
