"""Disks on which the n-th call fails, in this process: what Python asks of the system, and what SQLite is asked."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CALLS = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "chmod", "utime")
"""Functions of `os` that may fail."""


class FailingDisk:
    """Counts calls, and lets the n-th one fail.

    Attributes:
        count: calls since `fail` was called.
        fired: the name of the call that failed; None if none has.
    """

    def __init__(self, patch: pytest.MonkeyPatch, below: Path) -> None:
        """Watch this process; only calls on paths below `below`, or on open files, can fail."""
        self.count, self.fired = 0, None
        self._at: int | None = None
        self._code = errno.EIO
        self._stays = False
        self._below = str(below)
        for name in CALLS:
            patch.setattr(os, name, self._wrapped(getattr(os, name), name))
        patch.setattr(shutil, "copyfile", self._wrapped(shutil.copyfile, "copyfile"))
        connect, disk = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            """A connection whose statements are counted, except those of readers, which write nothing."""

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if not sql.startswith(("SELECT", "PRAGMA", "ROLLBACK")) or (disk.stays_broken and sql == "ROLLBACK"):
                    disk.call("sqlite", sqlite3.OperationalError("disk I/O error"))
                return super().execute(sql, *args)

            def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
                disk.call("sqlite", sqlite3.OperationalError("database or disk is full"))
                return super().executemany(sql, *args)

            def executescript(self, sql: str) -> sqlite3.Cursor:
                disk.call("sqlite", sqlite3.OperationalError("disk I/O error"))
                return super().executescript(sql)

        patch.setattr(sqlite3, "connect", lambda *args, **given: connect(*args, **{**given, "factory": Connection}))

    @property
    def stays_broken(self) -> bool:
        """True once all calls fail."""
        return self._stays and self._at is not None and self.count >= self._at

    def call(self, name: str, error: Exception | None = None) -> None:
        """Count a call, and raise if it is the one that fails."""
        if self._at is None:
            return
        self.count += 1
        if self.count >= self._at:
            self.fired = name  # type: ignore[assignment]
            if not self._stays:
                self._at = None
            raise error or OSError(self._code, os.strerror(self._code))

    def _wrapped(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **given: Any) -> Any:
            path = target if name == "fsync" else str(target)
            if name == "fsync" or path.startswith(self._below) or "dir_fd" in given:
                try:
                    self.call(name)
                except OSError:
                    if name == "copyfile":  # as a full disk does: half of it is there
                        Path(args[0]).write_bytes(Path(target).read_bytes()[:1])
                    raise
            return real(target, *args, **given)

        return call

    @contextmanager
    def fail(self, number: int, code: int = errno.EIO, *, stays: bool = False) -> Iterator[None]:
        """Within the block the call of this number, from 1, fails with this error; `stays`: and all after it."""
        self.count, self.fired, self._at, self._code, self._stays = 0, None, number, code, stays
        try:
            yield
        finally:
            self._at = None
