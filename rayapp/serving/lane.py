"""Lane: the one thread of a replica that runs networks, on which clicks overtake longer work."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any

Entry = tuple[Future[Any], Callable[[], Any]]


class Rank(IntEnum):
    """Order of work: a click, then a proposal that somebody waits for on the screen, then what nobody waits for."""

    CLICK = 0
    PROPOSAL = 1
    AHEAD = 2


class Turns:
    """Work of one rank: everybody's in its order, and one of each person's in turn."""

    def __init__(self) -> None:
        self._people: OrderedDict[Hashable, deque[Entry]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._people)

    def add(self, whose: Hashable, entry: Entry) -> None:
        """Add work of a person."""
        self._people.setdefault(whose, deque()).append(entry)

    def take(self) -> Entry:
        """The next work; whose it is has the next turn after all others. Raises KeyError if there is none."""
        whose, theirs = self._people.popitem(last=False)
        entry = theirs.popleft()
        if theirs:
            self._people[whose] = theirs
        return entry


class Lane:
    """A thread that runs clicks first; work of one rank is done by turns, so that nobody's many calls hold up others.

    Longer work lets clicks pass between two of its windows: they run inside it, on the same thread, so that a device
    never computes for two requests at once. Clicks do not overtake each other.

    Args:
        name: name of the thread.
        set_up: called in the thread first.
    """

    def __init__(self, name: str, set_up: Callable[[], object]) -> None:
        self._waiting = {rank: Turns() for rank in Rank}
        self._changed = threading.Condition()
        self._closed = False
        self._set_up = set_up
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, work: Callable[[], Any], *, rank: Rank, whose: Hashable = None) -> Future[Any]:
        """Queue work of a person. After the lane is closed, it is cancelled at once."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._waiting[rank].add(whose, (future, work))
            self._changed.notify()
        return future

    @property
    def click_waits(self) -> bool:
        """True if there is a click for `let_pass`."""
        return bool(self._waiting[Rank.CLICK])

    def let_pass(self) -> None:
        """Run all clicks that wait. Work other than clicks calls this in the lane's thread."""
        while True:
            with self._changed:
                if not self.click_waits:
                    return
                entry = self._waiting[Rank.CLICK].take()
            _run(*entry)

    def close(self) -> None:
        """Cancel queued work and end the thread after the work in progress."""
        with self._changed:
            self._closed = True
            for turns in self._waiting.values():
                while turns:
                    turns.take()[0].cancel()
            self._changed.notify()

    def _work(self) -> None:
        self._set_up()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or any(self._waiting.values()))
                if self._closed:
                    return
                entry = next(turns for turns in self._waiting.values() if turns).take()
            _run(*entry)


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
