"""Durable files: whole or not there at all, and once written they survive power loss."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
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
        sync(staged)
        staged.replace(path)
        sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)
