"""SteppedCommit: the writer of an index that commits only when a test says so, and in the batches that it says."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rayapp.datastore.commit import GroupCommit, _Change
from tests.waiting import PATIENCE_S

T = TypeVar("T")


class Crash(BaseException):
    """The process ends here."""


class Work:
    """Work in a thread of its own, which stands still wherever it waits for the writer.

    Attributes:
        change: the change that it waits for; None once it has ended.
        result: what it returned.
        error: what it raised.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.change: _Change[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._stands, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.work = self  # type: ignore[attr-defined]
        self._thread.start()
        assert self._stands.acquire(timeout=PATIENCE_S)

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        finally:
            self.change = None
            self._stands.release()

    def stand(self, change: _Change[Any]) -> None:
        """Called in the thread: wait until the change was committed."""
        self.change = change
        self._stands.release()
        assert self._go.acquire(timeout=PATIENCE_S)

    def go_on(self) -> None:
        """Let it run until it waits again or ends."""
        self._go.release()
        assert self._stands.acquire(timeout=PATIENCE_S)


class SteppedCommit(GroupCommit):
    """Changes of `Work` wait for `step`; those of any other thread are committed at once, each alone."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._open = True

    def do(
        self,
        apply: Callable[[sqlite3.Connection], T],
        *,
        folders: Iterable[Path] = (),
        publish: Callable[[T], None] | None = None,
    ) -> T:
        change = _Change(apply, frozenset(folders), publish)
        work = getattr(threading.current_thread(), "work", None)
        if work is None:
            self._commit([change])
        else:
            work.stand(change)
        return change.answer.result(PATIENCE_S)

    def step(self, batch: Sequence[Work], *, published: int | None = None) -> list[_Change[Any]]:
        """Commit what these wait for in one batch, and let them go on one after the other.

        Args:
            batch: in the order of the commit.
            published: the process dies once so many of the changes were published, and none goes on.

        Returns:
            Their changes.
        """
        changes = [work.change for work in batch if work.change is not None]
        if published is None:
            self._commit(changes)
            for work in batch:
                work.go_on()
            return changes
        for change in changes[published:]:
            change.publish = _dies
        with suppress(Crash):
            self._commit(changes)
        return changes

    def close(self) -> None:
        """Nothing is left to do: there is no thread."""


def _dies(_: Any) -> None:
    raise Crash
