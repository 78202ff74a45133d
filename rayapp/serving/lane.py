"""Lane: the one thread of a replica that runs networks, on which clicks overtake longer work."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Lane:
    """A thread that runs clicks first, and otherwise works in the order of submission.

    Longer work lets clicks pass between two of its windows: they run inside it, on the same thread, so that a device
    never computes for two requests at once. Clicks do not overtake each other.

    Args:
        name: name of the thread.
        set_up: called in the thread first.
    """

    def __init__(self, name: str, set_up: Callable[[], object]) -> None:
        self._clicks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._others: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._set_up = set_up
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, work: Callable[[], Any], *, click: bool) -> Future[Any]:
        """Queue work. After the lane is closed, it is cancelled at once."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            (self._clicks if click else self._others).append((future, work))
            self._changed.notify()
        return future

    def let_pass(self) -> None:
        """Run all clicks that wait. Work other than clicks calls this in the lane's thread."""
        while self._clicks:
            _run(*self._clicks.popleft())

    def close(self) -> None:
        """Cancel queued work and end the thread after the work in progress."""
        with self._changed:
            self._closed = True
            for queue in (self._clicks, self._others):
                while queue:
                    queue.popleft()[0].cancel()
            self._changed.notify()

    def _work(self) -> None:
        self._set_up()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._clicks or self._others or self._closed)
                if self._closed:
                    return
                future, work = (self._clicks or self._others).popleft()
            _run(future, work)


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
