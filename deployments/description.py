"""Description: what the app says of itself, kept for a moment, so that `/info/` costs next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from deployments.clients import JobsClient, ModelsClient
from rayapp.errors import Busy, NotFound

KEPT_S = 1.0
STATS_S = 0.2


class Description:
    """`Catalogue.describe()`, with the jobs' part, as of at most a second ago. Belongs to one event loop."""

    def __init__(self, models: ModelsClient, jobs: JobsClient) -> None:
        self._models = models
        self._jobs = jobs
        self._asking = asyncio.Lock()
        self._said: dict[str, Any] = {}
        self._stats: dict[str, Any] = {}
        self._until = 0.0

    async def get(self) -> dict[str, Any]:
        """Asked once, however many callers wait."""
        if time.monotonic() >= self._until:
            async with self._asking:
                if time.monotonic() >= self._until:
                    self._said = await self._whole()
                    self._until = time.monotonic() + KEPT_S
        return self._said

    async def _whole(self) -> dict[str, Any]:
        said, _ = await asyncio.gather(self._models.describe(), self._ask_jobs())
        return {**said, "train_stats": {name: self._stats.get(name, {}) for name in said["trainers"]}}

    async def _ask_jobs(self) -> None:
        """The newest statistics; the ones before while the jobs' actor does not answer, for nobody waits for it."""
        with contextlib.suppress(TimeoutError, Busy):
            self._stats = await asyncio.wait_for(self._jobs.train_stats(), STATS_S)

    def forget(self) -> None:
        """What the app says has changed."""
        self._until = 0.0

    async def spelled(self, section: str, name: str) -> str:
        """`name` as the app knows it: in paths, `+` and a space stand for each other. Unknown names come back as is."""
        known = (await self.get())[section]
        spellings = (name, name.replace("+", " "), name.replace(" ", "+"))
        return next((spelling for spelling in spellings if spelling in known), name)

    async def known(self, section: str, what: str, name: str) -> str:
        """As `spelled`. Raises NotFound, which says what there is."""
        found = await self.spelled(section, name)
        known = (await self.get())[section]
        if found not in known:
            raise NotFound(f"no {what} {name[:200]!r}; there are: {', '.join(known) or 'none'}")
        return found
