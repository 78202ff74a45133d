"""Delays for who sends wrong keys, so that they cannot be tried at full speed. Right keys are never delayed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from fastapi import HTTPException

FREE = 10
"""Wrong keys of one address that are refused at once."""
SLOWEST_S = 8.0
FORGIVEN_S = 900.0
"""Seconds without a wrong key after which an address is forgiven."""
MAX_WAITING = 20
"""Refusals that one address may wait for at a time."""
MAX_ADDRESSES = 10_000


@dataclass
class _Address:
    count: int = 0
    last: float = 0.0
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class WrongKeys:
    """Counts wrong keys by address. Belongs to one event loop."""

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}

    async def refused(self, address: str) -> None:
        """Wait, before a wrong key is refused: one after the other, each twice as long as the one before.

        Raises:
            HTTPException: 429, if too many refusals of the address wait already.
        """
        now = time.monotonic()
        self._forgive(now)
        seen = self._addresses.setdefault(address, _Address())
        if seen.waiting >= MAX_WAITING:
            text = "too many wrong keys came from this address: wait, then send a valid one"
            raise HTTPException(429, text, headers={"Retry-After": f"{SLOWEST_S:.0f}"})
        seen.count, seen.last = seen.count + 1, now
        if seen.count <= FREE:
            return
        seen.waiting += 1
        try:
            async with seen.turn:
                await asyncio.sleep(min(SLOWEST_S, 0.25 * 2.0 ** min(seen.count - FREE - 1, 10)))
        finally:
            seen.waiting -= 1

    def _forgive(self, now: float) -> None:
        if len(self._addresses) < MAX_ADDRESSES:
            for address in [each for each, seen in self._addresses.items() if _over(seen, now)][:100]:
                del self._addresses[address]
        else:
            self._addresses = {each: seen for each, seen in self._addresses.items() if seen.waiting}


def _over(seen: _Address, now: float) -> bool:
    return not seen.waiting and now > seen.last + FORGIVEN_S
