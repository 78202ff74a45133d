"""LabelSender: sends final labels to the archive in the background, each at its own pace.

A label that cannot be sent waits longer after each failure, while the others go on; the reason is kept in the label's
info. When several fail in a row the archive itself is taken to be unavailable, and everything waits. A label that the
archive refuses for good is recorded as refused and not sent again until it is saved again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.index import Index, info_of, update_label
from rayapp.datastore.interfaces import Info
from rayapp.datastore.schema import REFUSED, UNSENT
from rayapp.errors import ArchiveAway, Busy, NotFound, RayappError
from rayapp.protocol import FINAL

ARCHIVED, PROBLEM, WAITING = "archived", "archive_problem", "archive_waiting"
"""Keys of a label's info: the revision that the archive stored or refused, the reason of a refusal, and the reason why
it is not stored yet."""
KEYS = (ARCHIVED, PROBLEM, WAITING)
RETRY_S = 10.0
MAX_RETRY_S = 300.0
"""Seconds until a label is sent again after a failure: at first, and at most."""
MAX_FAILURES = 3
"""Consecutive failures after which the archive is taken to be unavailable."""
UnsentLabel = tuple[str, str]
"""Image id, and the revision's SHA-256."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failed:
    """Failures of one label so far, and when it is due again (monotonic seconds)."""

    failures: int
    due: float


class LabelSender:
    """The sending thread of one datastore."""

    def __init__(
        self,
        *,
        index: Index,
        commit: GroupCommit,
        send: Callable[[str, str], Info],
        touched: Callable[[], None],
    ) -> None:
        """Prepare it; `start` begins to send.

        Args:
            index: the index of labels.
            commit: the index's writer.
            send: sends a label, given its image's id and its revision's SHA-256, and returns the info to record. Raises
                ArchiveAway, Busy or NotFound if a later attempt may succeed, any other RayappError if none will.
            touched: called after an info has changed.
        """
        self._index = index
        self._commit = commit
        self._send = send
        self._touched = touched
        self._failed: dict[UnsentLabel, _Failed] = {}
        self._reason: str | None = None
        self._pause = 0.0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="datastore-stow", daemon=True)

    def start(self) -> None:
        """Start the thread. An earlier server may have left labels unsent."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread. Labels not sent yet are sent after the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def notify(self) -> None:
        """A label was saved."""
        self._wake.set()

    def unsent(self) -> list[UnsentLabel]:
        """The final labels that the archive has neither stored nor refused, oldest first."""
        with self._index.reader() as db:
            return list(
                db.execute(f"SELECT image_id, sha FROM label INDEXED BY label_unsent WHERE {UNSENT} ORDER BY rowid")
            )

    def status(self) -> Info:
        """Numbers of labels `unsent` and `refused`, and under `problem` the reason of the latest failure."""
        with self._index.reader() as db:
            (unsent,) = db.execute(f"SELECT count(*) FROM label INDEXED BY label_unsent WHERE {UNSENT}").fetchone()
            (refused,) = db.execute(f"SELECT count(*) FROM label INDEXED BY label_refused WHERE {REFUSED}").fetchone()
        return {"unsent": unsent, "refused": refused, **({"problem": self._reason} if unsent and self._reason else {})}

    def _run(self) -> None:
        rest: float | None = 0.0
        while not self._stop.is_set():
            self._wake.wait(rest)
            self._wake.clear()
            try:
                rest = self.send_due()
            except Exception as error:  # the index could not be read or written
                rest = MAX_RETRY_S
                log.error("labels could not be sent to the archive and will be sent again: %s", type(error).__name__)

    def send_due(self) -> float | None:
        """Send the labels that are due, the longest waiting first. Called by one thread.

        Returns:
            Seconds until the next one is due; None if none is left.
        """
        unsent = self.unsent()
        self._failed = {label: self._failed[label] for label in unsent if label in self._failed}
        in_a_row = 0
        for label in sorted(unsent, key=self._due):
            if self._stop.is_set() or in_a_row == MAX_FAILURES or self._due(label) > time.monotonic():
                break
            if reason := self._attempt(label):
                in_a_row += 1
                self._reason = reason
                self._defer(label, reason)
            else:
                in_a_row, self._pause = 0, 0.0
                self._failed.pop(label, None)
        self._pause = min(2 * self._pause or RETRY_S, MAX_RETRY_S) if in_a_row == MAX_FAILURES else 0.0
        left = self.unsent()
        if not left:
            return None
        return max(min(map(self._due, left)) - time.monotonic(), self._pause, 0.0)

    def _due(self, label: UnsentLabel) -> float:
        failed = self._failed.get(label)
        return 0.0 if failed is None else failed.due

    def _attempt(self, label: UnsentLabel) -> str | None:
        """Send one label and record the outcome. Returns the reason if it has to be sent again, else None."""
        try:
            self._note(label, {ARCHIVED: label[1], **self._send(*label)})
        except (ArchiveAway, Busy, NotFound) as error:
            log.warning("a label could not be sent to the archive and will be sent again: %s", error.detail)
            return error.detail
        except RayappError as error:
            log.error("the archive refused a label; it is kept on this server only: %s", error.detail)
            self._note(label, {ARCHIVED: label[1], PROBLEM: error.detail})
        except Exception as error:
            log.error("a label could not be sent to the archive and will be sent again: %s", type(error).__name__)
            return f"an unexpected error occurred ({type(error).__name__}); see the server's log"
        return None

    def _defer(self, label: UnsentLabel, reason: str) -> None:
        failures = 1 + (self._failed[label].failures if label in self._failed else 0)
        delay = min(RETRY_S * 2 ** min(failures - 1, 30), MAX_RETRY_S)
        self._failed[label] = _Failed(failures, time.monotonic() + delay)
        self._note(label, {WAITING: reason})

    def _note(self, label: UnsentLabel, info: Info) -> None:
        """Record the outcome in the label's info, replacing an earlier one, if the label is still current."""
        image_id, sha = label

        def apply(db: sqlite3.Connection) -> Info | None:
            row = db.execute("SELECT sha, info FROM label WHERE image_id = ? AND tag = ?", (image_id, FINAL)).fetchone()
            if row is None or row[0] != sha or info.items() <= info_of(row[1]).items():
                return None  # saved again since, or recorded already
            return update_label(db, image_id, FINAL, info, without=KEYS)

        if self._commit.do(apply) is not None:
            self._touched()
