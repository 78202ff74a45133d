"""The app's description, cached for a second so that `GET /info/` is cheap."""

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
    """`Catalogue.describe()` with training statistics, at most a second old. Belongs to one event loop."""

    def __init__(self, models: ModelsClient, jobs: JobsClient) -> None:
        self._models = models
        self._jobs = jobs
        self._asking = asyncio.Lock()
        self._said: dict[str, Any] = {}
        self._stats: dict[str, Any] = {}
        self._until = 0.0

    async def get(self) -> dict[str, Any]:
        """The description. Concurrent callers share one request (single flight)."""
        if time.monotonic() >= self._until:
            async with self._asking:
                if time.monotonic() >= self._until:
                    self._said = await self._whole()
                    self._until = time.monotonic() + KEPT_S
        return self._said

    async def _whole(self) -> dict[str, Any]:
        described, _ = await asyncio.gather(self._models.describe(), self._ask_jobs())
        return {**described, "train_stats": {name: self._stats.get(name, {}) for name in described["trainers"]}}

    async def _ask_jobs(self) -> None:
        """Refresh the training statistics; the previous ones stay if the jobs actor does not answer soon."""
        with contextlib.suppress(TimeoutError, Busy):
            self._stats = await asyncio.wait_for(self._jobs.train_stats(), STATS_S)

    def forget(self) -> None:
        """Drop the cached description, after a change."""
        self._until = 0.0

    async def spelled(self, section: str, name: str) -> str:
        """The app's spelling of a name from a URL, where `+` and a space are the same. Unknown names stay unchanged.

        Args:
            section: key of the description that lists the names: "models", "trainers", …
            name: from the path.
        """
        known = (await self.get())[section]
        spellings = (name, name.replace("+", " "), name.replace(" ", "+"))
        return next((spelling for spelling in spellings if spelling in known), name)

    async def known(self, section: str, what: str, name: str) -> str:
        """As `spelled`. Raises NotFound for an unknown name, and lists the known ones."""
        spelling = await self.spelled(section, name)
        known = (await self.get())[section]
        if spelling not in known:
            raise NotFound(f"no {what} {name[:200]!r}; there are: {', '.join(known) or 'none'}")
        return spelling
