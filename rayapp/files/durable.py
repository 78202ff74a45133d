"""Files that are whole or not there at all, and that survive power loss once they are written."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

from rayapp.errors import BadRequest

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


def new_path(folder: Path, ext: str) -> Path:
    """A path in the folder that no file has. Raises BadRequest unless `ext` is "" or an extension."""
    return folder / (uuid.uuid4().hex + checked_ext(ext))


def checked_ext(ext: str) -> str:
    """Return `ext` if it is "" or an extension of up to three suffixes such as `.nii.gz`. Raises BadRequest."""
    if ext and not _EXT.fullmatch(ext):
        raise BadRequest(f"{ext[:40]!r} is not a file name extension such as .nii.gz")
    return ext
