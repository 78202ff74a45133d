"""FolderClaim: one process's right to write a studies folder, which it loses if it stops working.

A lock keeps a second server out for as long as the first one works. It does not suffice alone: a node that was cut off
the network may keep its lock for minutes, a process that was stopped for ever, and on some file systems locks have no
effect on other nodes. So the owner also touches a file every few seconds. Who finds that untouched for `LEASE_S` takes
the folder over: the old owner, if it still lives, finds at its next change that another one has put its name into the
index (`GroupCommit`), or at its next touch that its lock is gone, and ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rayapp.errors import Conflict

LEASE_S = 30.0
"""Seconds without a touch after which an owner is taken to be gone."""
BEAT_S = 5.0
SLICE_S = 0.5
LOCK, BEAT = "lock", "beat"

log = logging.getLogger(__name__)


class FolderClaim:
    """Held from its construction until `release`.

    Args:
        hidden: the studies folder's `.rayapp`.
        patience: seconds to wait for another owner to release it, or to be gone.
        lost: called on a thread, once another process has taken the folder over.

    Raises:
        Conflict: another process owns the folder, or the file system has no locks.
    """

    def __init__(self, hidden: Path, patience: float, *, lost: Callable[[], None]) -> None:
        self._path, self._beat = hidden / LOCK, hidden / BEAT
        self._lock = self._acquired(time.monotonic() + patience)
        self._inode = self._path.stat().st_ino
        self._lost, self._ended = lost, threading.Event()
        self._thread = threading.Thread(target=self._keep, name="datastore-claim", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let others have the folder."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_ours():
                self._beat.unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _acquired(self, deadline: float) -> FileLock:
        seen, since = self._stamp(), time.monotonic()
        while True:
            with suppress(Timeout):
                return self._locked(max(0.0, min(SLICE_S, deadline - time.monotonic())))
            stamp = self._stamp()
            if stamp != seen:
                seen, since = stamp, time.monotonic()
            if stamp is not None and time.monotonic() > since + LEASE_S and (lock := self._taken_over(stamp)):
                return lock
            if time.monotonic() >= deadline:
                raise Conflict("the studies folder is open in another process: stop that process first")

    def _locked(self, patience: float) -> FileLock:
        lock = FileLock(self._path, thread_local=False)
        try:
            lock.acquire(timeout=patience)
        except NotImplementedError:
            raise Conflict("the file system of the studies folder has no file locks: mount it with locks") from None
        try:
            self._beat.touch()
        except OSError:
            lock.release()
            raise
        return lock

    def _taken_over(self, stamp: int) -> FileLock | None:
        """Replace the lock of an owner that is gone; None if somebody else did, or it is not gone after all."""
        with FileLock(self._path.with_name("takeover")), suppress(Timeout):
            if self._stamp() == stamp:
                log.error("the owner of the studies folder has not been heard of for %g s: it is replaced", LEASE_S)
                self._path.unlink(missing_ok=True)
                return self._locked(0.0)
        return None

    def _stamp(self) -> int | None:
        """When the owner last touched its file; None without one, as while a command has the folder."""
        with suppress(FileNotFoundError):
            return self._beat.stat().st_mtime_ns
        return None

    def _is_ours(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):  # a disk that fails, or is not there, for a moment
                if self._path.stat().st_ino != self._inode:
                    log.critical("another process has taken the studies folder over; ending this one")
                    self._lost()
                    return
                os.utime(self._beat)
