"""A cache bounded in bytes, that makes each value once however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


T = TypeVar("T", bound=Sized)


class ByteCache(Generic[T]):
    """Least recently used values go when the sum of their bytes passes `capacity`. For one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[T]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def newest(self, count: int) -> list[Any]:
        """The keys used last, the very last one at the end."""
        return list(self._values)[-count:]

    def kept(self, key: Hashable) -> T | None:
        """The value of `key` if it is there."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Hold a new key's value."""
        self._values[key] = value
        self._held += value.nbytes
        while self._held > self._capacity and len(self._values) > 1:
            _, oldest = self._values.popitem(last=False)
            self._held -= oldest.nbytes

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`, made by `make` if it is not there.

        A caller that is cancelled does not cancel the making, since others may wait for it; what `make` raises goes
        to all who wait, and nothing is kept.
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
            del self._making[key]
        self.put(key, value)
        return value
