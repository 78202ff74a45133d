"""The threads of a replica, and the priorities on the one that runs networks.

    network   one thread, so that a device never computes for two requests at once; clicks go first, then proposals,
              then what is done ahead, each by turns of the people who ask (`Lane`)
    strokes   two threads for models that run no network, so that no click waits behind another's graph cut
    io        reading, decoding, preparing, encoding

While a click is being answered, background work waits before each of its steps and, inside a network, yields at the
next window; background work of other processes pauses too (`rayapp.runtime.priority`). All methods belong to one event
loop; `give_way`, `click_waits`, `let_pass` and `close` may also be called from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from rayapp.runtime.priority import ForegroundLoad
from rayapp.serving.lane import Lane, Rank

T = TypeVar("T")

IO_THREADS = 4
STROKE_THREADS = 2
STROKE_NICE = 5
"""Added to the niceness of the strokes' threads, so that they yield to the network if cores are scarce."""


class GaveWay(Exception):
    """Background work was interrupted for a click."""


class Executors:
    """The threads of one replica."""

    def __init__(self, *, threads: int | None) -> None:
        """Args:
        threads: with which the network may compute on the CPU; None leaves it to torch.
        """
        # Each thread that computes in parallel has an OpenMP team of its own, and with more teams than cores they sleep
        # between any two operations: only the network's thread gets a team.
        share = partial(torch.set_num_threads, threads or torch.get_num_threads())
        alone = partial(torch.set_num_threads, 1)
        self._network = Lane("network", share)
        self._strokes = ThreadPoolExecutor(STROKE_THREADS, thread_name_prefix="strokes", initializer=_set_up_strokes)
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io", initializer=alone)
        self._clicks = 0
        self._waited_for = ForegroundLoad()
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def io(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run `function` in an io thread, in parallel to the network."""
        return await asyncio.get_running_loop().run_in_executor(self._io, partial(function, *args))

    async def model(
        self, function: Callable[..., T], /, *args: Any, network: bool, rank: Rank = Rank.CLICK, whose: Hashable = None
    ) -> T:
        """Run a model, in the network's thread if it runs a network; there, by `whose` turn of the rank."""
        work = partial(function, *args)
        if network:
            return await asyncio.wrap_future(self._network.submit(work, rank=rank, whose=whose))
        return await asyncio.get_running_loop().run_in_executor(self._strokes, work)

    @property
    def click_waits(self) -> bool:
        """True if a click waits for the network."""
        return self._network.click_waits

    def let_pass(self) -> None:
        """Run the clicks that wait for the network. Work other than clicks calls this in the network's thread."""
        self._network.let_pass()

    @contextlib.contextmanager
    def click(self) -> Iterator[None]:
        """Mark a click as being answered while the block runs."""
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
        """Wait until no click is being answered, for at most `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._quiet.wait()

    def give_way(self) -> None:
        """Raise GaveWay while a click is being answered."""
        if self._clicks:
            raise GaveWay("a click waits")

    def close(self) -> None:
        """Stop the threads and drop queued work. Call it from any thread, once no other method is called any more."""
        self._network.close()
        for pool in (self._strokes, self._io):
            pool.shutdown(wait=False, cancel_futures=True)
        self._waited_for.close()


def _set_up_strokes() -> None:
    """Set up a thread for strokes: one core, and a lower priority than the network's (per thread on Linux)."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        mine = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + STROKE_NICE)
