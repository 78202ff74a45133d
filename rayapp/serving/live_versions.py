"""Serving: which version of each model answers in this replica, and how a newer one takes over.

A newer version is loaded and warmed beside the one that serves, and only then takes its place; calls under way finish
on the version they began with. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rayapp.app.label_app import LabelApp
from rayapp.inference.infer_task import InferTask
from rayapp.serving.executors import Executors

logger = logging.getLogger(__name__)

WATCH_S = 1.0
"""Seconds between two looks for newer versions."""

Warm = Callable[[str, InferTask, InferTask], Awaitable[None]]


class Serving:
    """The app that serves, always the newest."""

    def __init__(self, *, app: LabelApp, executors: Executors, warm: Warm) -> None:
        """`warm` is called with a model's name, its task that serves and the one that will, before that does."""
        self.app = app
        self._executors = executors
        self._warm = warm
        self._swap: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._past: tuple[str, str, InferTask] | None = None
        self._recalling = asyncio.Lock()

    async def task(self, model: str, version: str | None = None) -> InferTask:
        """The task that serves now, or one of a certain version. Raises NotFound."""
        return await (self._recalled(model, version) if version else self._newest(model))

    async def _newest(self, model: str) -> InferTask:
        cold = self._watch is None  # nobody was served yet: nobody holds on to the old version
        if cold:
            self._watch = asyncio.create_task(self._watching())
        while (published := await self._published(model)) != self.app.serving.get(model):
            swap = self._swapping()
            if published is not None and model in self.app.infers and not cold:
                break
            await asyncio.shield(swap)
        return self.app.task(model)

    async def _recalled(self, model: str, version: str) -> InferTask:
        """A version that need not serve, for a replay. The last one asked for is kept."""
        async with self._recalling:
            if self._past is None or self._past[:2] != (model, version):
                app = self.app
                made = await self._executors.io(lambda: app.make_task(app.models.version(model, version)))
                self._past = (model, version, made)
            return self._past[2]

    async def _published(self, model: str) -> str | None:
        return await self._executors.io(self.app.models.serving, model)

    async def _watching(self) -> None:
        """Look for newer versions also while nobody asks, so that nobody has to be the first to ask for one."""
        while True:
            await asyncio.sleep(WATCH_S)
            for model in list(self.app.infers):
                if await self._published(model) != self.app.serving.get(model):
                    self._swapping()

    def _swapping(self) -> asyncio.Task[None]:
        """The swap to the app as it is now: the one under way, or a new one."""
        if self._swap is None or self._swap.done():
            self._swap = asyncio.create_task(self._renew())
            self._swap.add_done_callback(_noticed)
        return self._swap

    async def _renew(self) -> None:
        app = await self._executors.io(self.app.renewed)
        for model, task in app.infers.items():
            old = self.app.infers.get(model)
            if old is not None and old is not task:
                await self._warm(model, old, task)
        self.app = app

    def close(self) -> None:
        """Stop looking for newer versions."""
        if self._watch is not None:
            self._watch.cancel()


def _noticed(swap: asyncio.Task[None]) -> None:
    """Say it if a swap failed; the old app serves on, and the next look tries again."""
    if not swap.cancelled() and (error := swap.exception()) is not None:
        logger.error("the app could not be renewed: %s", type(error).__name__)
