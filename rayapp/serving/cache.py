"""An LRU cache bounded in bytes; concurrent requests for a value share one computation (single flight)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value with a size in bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


T = TypeVar("T", bound=Sized)


class ByteCache(Generic[T]):
    """Evicts the least recently used values when all together exceed `capacity` bytes.

    Belongs to one event loop. A single value may be larger than the capacity.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[T]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._held

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def newest(self, count: int) -> list[Any]:
        """The `count` most recently used keys, the latest one last."""
        return list(self._values)[-count:]

    def kept(self, key: Hashable) -> T | None:
        """The value of `key`; None if it is not cached."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Add the value of a new key."""
        self._values[key] = value
        self._held += value.nbytes
        while self._held > self._capacity and len(self._values) > 1:
            _, oldest = self._values.popitem(last=False)
            self._held -= oldest.nbytes

    def clear(self) -> None:
        """Drop all values; what is being made goes to those who wait for it and is not kept."""
        self._values.clear()
        self._making.clear()
        self._held = 0

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`, computed by `make` if it is not cached.

        A cancelled caller does not cancel the computation, since others may wait for it. An error of `make` goes to all
        callers that wait, and nothing is cached.
        """
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.create_task(self._make(key, make))
        return await asyncio.shield(task)

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await make()
        finally:
            wanted = self._making.get(key) is asyncio.current_task()  # not after `clear`
            if wanted:
                del self._making[key]
        if wanted:
            self.put(key, value)
        return value
