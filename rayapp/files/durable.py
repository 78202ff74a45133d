"""Files that are whole or not there at all, and that survive power loss once they are written."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

from rayapp.errors import FULL, BadRequest, Busy, DiskFull, disk_reason

_EXT = re.compile(r"(\.\w{1,16}){1,3}", re.ASCII)


def sync(path: Path) -> None:
    """Fsync a file's bytes or a folder's entries, so that they survive power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically and durably.

    Yields:
        A new path in the same folder, with the same extension, to write the file to. When the block ends without an
        error the file takes the place of `path`; otherwise it is removed and `path` stays as it was.
    """
    staged = path.with_name(f".part-{secrets.token_hex(8)}-{path.name}")
    try:
        yield staged
        replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def replace(staged: Path, path: Path) -> None:
    """Move a complete file to the place of `path` on the same file system, atomically and durably."""
    sync(staged)
    staged.replace(path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and those above it where they are missing, durably."""
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    # Whoever created the deepest folder that is there may have died before it was synced; those above it are.
    there = missing[-1].parent if missing else path
    with contextlib.suppress(PermissionError):
        sync(there.parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def disk_error(error: OSError) -> Busy:
    """The error to raise when a file cannot be written, with the system's reason; DiskFull for want of room."""
    kind = DiskFull if error.errno in FULL else Busy
    return kind(f"a file could not be written: {disk_reason(error)}, then try again")


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn errors of the system within the block into Busy, which says what is wrong."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def new_path(folder: Path, ext: str) -> Path:
    """A path in the folder that no file has. Raises BadRequest unless `ext` is "" or an extension."""
    return folder / (uuid.uuid4().hex + checked_ext(ext))


def checked_ext(ext: str) -> str:
    """Return `ext` if it is "" or an extension of up to three suffixes such as `.nii.gz`. Raises BadRequest."""
    if ext and not _EXT.fullmatch(ext):
        raise BadRequest(f"{ext[:40]!r} is not a file name extension such as .nii.gz")
    return ext
