"""Withdrawals: jobs that clients were told could not be submitted, as files which gateways write and the queue follows.

A submission that was not answered in time may still arrive at the queue. The gateway therefore records that it is
withdrawn before it answers the client, and may die right afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rayapp.errors import Busy
from rayapp.files.durable import make_folder, sync, writing

logger = logging.getLogger(__name__)

KEPT_S = 7 * 24 * 3600.0
"""Seconds for which a withdrawal is kept, far longer than a submission can be under way."""


class Withdrawals:
    """The withdrawn jobs of one workspace. Used by several processes; thread-safe."""

    @classmethod
    def of(cls, workspace: Path) -> Withdrawals:
        """Those of the server with this workspace."""
        return cls(workspace / "withdrawn")

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record(self, job_id: str) -> None:
        """Withdraw a job; durable on return. Raises Busy if the disk cannot be written."""
        with writing():
            make_folder(self._folder)
            (self._folder / job_id).touch()
            sync(self._folder)

    def has(self, job_id: str) -> bool:
        """True if the job was withdrawn."""
        return (self._folder / job_id).exists()

    def all(self) -> set[str]:
        """Ids of the withdrawn jobs. Those that are too old to matter are deleted."""
        ids = set()
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if time.time() - path.stat().st_mtime < KEPT_S:
                ids.add(path.name)
            else:
                with suppress(OSError):
                    path.unlink()
        return ids

    def follow(self, withdraw: Callable[[str], None], ends: Callable[[], bool]) -> None:
        """Withdraw each job as gateways record it.

        Args:
            withdraw: called once for each job, again if it raises Busy.
            ends: waits a moment; True ends it.
        """
        done: set[str] = set()
        while True:
            try:
                withdrawn = self.all()
                done &= withdrawn
                for job_id in withdrawn - done:
                    withdraw(job_id)
                    done.add(job_id)
            except (Busy, OSError) as error:
                logger.warning("a job could not be withdrawn yet: %s", type(error).__name__)
            if ends():
                return
