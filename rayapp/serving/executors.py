"""The threads of a replica, and who goes first on the one that runs networks.

    network   one thread, so that a device is never asked for two things at once
    strokes   few threads, for models that need no network: nobody's click waits behind another's graph cut
    io        disk, decoding, preparing, encoding

While a click is under way, background work waits before each of its steps, and one that is in a network gives way at
the network's next window; other processes' background work rests (`rayapp.runtime.priority`). All methods belong to
one event loop; `give_way` and `close` may be called in any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from rayapp.runtime.priority import ForegroundLoad

T = TypeVar("T")

IO_THREADS = 4
STROKE_THREADS = 2
STROKE_NICE = 5
"""How much they stand back where there are fewer cores than threads."""


class GaveWay(Exception):
    """Background work stopped, since a click waits."""


class Executors:
    """The threads of one replica."""

    def __init__(self, *, threads: int | None) -> None:
        """`threads` is how many the network may compute with on the CPU; None leaves it to torch."""
        # Each thread that computes in parallel has a team of its own, and with more of them than cores the teams sleep
        # between any two operations: only the network's thread gets one.
        share = partial(torch.set_num_threads, threads or torch.get_num_threads())
        alone = partial(torch.set_num_threads, 1)
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network", initializer=share)
        self._strokes = ThreadPoolExecutor(STROKE_THREADS, thread_name_prefix="strokes", initializer=_behind)
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io", initializer=alone)
        self._clicks = 0
        self._waited_for = ForegroundLoad()
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def io(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run beside the network."""
        return await asyncio.get_running_loop().run_in_executor(self._io, partial(function, *args))

    async def model(self, function: Callable[..., T], /, *args: Any, network: bool) -> T:
        """Run a model that needs the network's thread, or that does not."""
        pool = self._network if network else self._strokes
        return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *args))

    @contextlib.contextmanager
    def click(self) -> Iterator[None]:
        """While somebody waits for an answer."""
        if not self._clicks:
            self._waited_for.begin()
            self._quiet.clear()
        self._clicks += 1
        try:
            yield
        finally:
            self._clicks -= 1
            if not self._clicks:
                self._waited_for.end()
                self._quiet.set()

    async def quiet(self, patience: float | None = None) -> None:
        """Wait until nobody waits for an answer, at most `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._quiet.wait()

    def give_way(self) -> None:
        """Raise GaveWay while somebody waits for an answer."""
        if self._clicks:
            raise GaveWay("a click waits")

    def close(self) -> None:
        """Stop the threads; what is still queued is dropped. From any thread, once nobody calls any more."""
        for pool in (self._network, self._strokes, self._io):
            pool.shutdown(wait=False, cancel_futures=True)
        self._waited_for.close()


def _behind() -> None:
    """This thread computes alone and, where cores are short, behind the network's: Linux has priorities by thread."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        mine = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + STROKE_NICE)
