"""Lane: the one thread of a replica that runs networks, on which clicks pass work that takes long."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Lane:
    """A thread that takes clicks first, each kind in its order.

    Work that takes long lets clicks pass between two of its windows: they run inside it, on the same thread, so that a
    device never computes for two at once. Clicks do not pass each other.

    Args:
        name: of the thread.
        set_up: called in it first.
    """

    def __init__(self, name: str, set_up: Callable[[], object]) -> None:
        self._clicks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._others: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._set_up = set_up
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, work: Callable[[], Any], *, click: bool) -> Future[Any]:
        """Queue work. Once the lane is closed it is cancelled at once."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            (self._clicks if click else self._others).append((future, work))
            self._changed.notify()
        return future

    def let_pass(self) -> None:
        """Run all clicks that wait. To be called in the lane's thread by work that is no click."""
        while self._clicks:
            _run(*self._clicks.popleft())

    def close(self) -> None:
        """Cancel what waits and end the thread after what runs."""
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
