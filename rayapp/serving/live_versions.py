"""Hot swap of model versions, and of the app's code, in a replica.

A newer version is loaded and warmed in parallel to the served one, and only then replaces it; calls in progress finish
on the version they began with. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rayapp.app.label_app import LabelApp
from rayapp.errors import RayappError
from rayapp.inference.infer_task import InferTask
from rayapp.serving.executors import Executors

logger = logging.getLogger(__name__)

WATCH_S = 1.0
"""Seconds between two checks for newer versions."""

Warm = Callable[[str, InferTask, InferTask], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Reload:
    """The steps by which a replica takes over new code of the app.

    Attributes:
        load: Loads the code, and returns the app with all its weights loaded; called in another thread.
        done: Called once that app serves.
    """

    load: Callable[[], LabelApp]
    done: Callable[[], None]


class Serving:
    """The replica's app, kept up to date with the versions in production."""

    def __init__(self, *, app: LabelApp, executors: Executors, warm: Warm, reload: Reload | None = None) -> None:
        """Args:
        app: loaded.
        executors: threads that load.
        warm: called with a model's name, its task that is served and the one that will be, before the swap.
        reload: makes the app anew from its code; None to serve the code that was loaded first.
        """
        self.app = app
        self._executors = executors
        self._warm = warm
        self._reload = reload
        self._code = app.models.reloads() if reload is not None else ""
        self._swap: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._past: tuple[str, str, InferTask] | None = None
        self._recalling = asyncio.Lock()

    async def task(self, model: str, version: str | None = None) -> InferTask:
        """The task of the version in production, or of the given version. Raises NotFound."""
        if not version:
            return await self._newest(model)
        served = self.app.infers.get(model)
        if served is not None and served.version == version:
            return served  # also a bundle's or an app's own version, which the store does not have
        return await self._recalled(model, version)

    async def _newest(self, model: str) -> InferTask:
        cold = self._watch is None  # no call was answered yet: nothing depends on the old version
        if cold:
            self._watch = asyncio.create_task(self._watching())
        while await self._code_changed():
            await asyncio.shield(self._swapping())
        while (published := await self._published(model)) != self.app.serving.get(model):
            swap = self._swapping()
            if published is not None and model in self.app.infers and not cold:
                break
            await asyncio.shield(swap)
        return self.app.task(model)

    async def _recalled(self, model: str, version: str) -> InferTask:
        """A version other than the one in production, for a replay. The last one is cached."""
        async with self._recalling:
            if self._past is None or self._past[:2] != (model, version):
                app = self.app
                task = await self._executors.io(lambda: app.make_task(app.models.version(model, version)))
                self._past = (model, version, task)
            return self._past[2]

    async def _published(self, model: str) -> str | None:
        return await self._executors.io(self.app.models.serving, model)

    async def _code_changed(self) -> bool:
        return self._reload is not None and await self._executors.io(self.app.models.reloads) != self._code

    async def _watching(self) -> None:
        """Check for newer versions between calls too, so that no call has to wait for the swap."""
        while True:
            await asyncio.sleep(WATCH_S)
            if await self._code_changed():
                self._swapping()
            for model in list(self.app.infers):
                if await self._published(model) != self.app.serving.get(model):
                    self._swapping()

    def _swapping(self) -> asyncio.Task[None]:
        """The running swap to the versions in production, or a new one."""
        if self._swap is None or self._swap.done():
            self._swap = asyncio.create_task(self._renew())
            self._swap.add_done_callback(_noticed)
        return self._swap

    async def _renew(self) -> None:
        if self._reload is not None and await self._code_changed():
            code = await self._executors.io(self.app.models.reloads)
            try:
                self.app = await self._executors.io(self._reload.load)
                self._reload.done()
            except RayappError as error:
                logger.error("the app's new code is not served: %s", error.detail)
            self._past, self._code = None, code
            return
        app = await self._executors.io(self.app.renewed)
        for model, task in app.infers.items():
            old = self.app.infers.get(model)
            if old is not None and old is not task:
                await self._warm(model, old, task)
        self.app = app

    def close(self) -> None:
        """Stop checking for newer versions."""
        if self._watch is not None:
            self._watch.cancel()


def _noticed(swap: asyncio.Task[None]) -> None:
    """Log a failed swap; the old versions stay, and the next check tries again."""
    if not swap.cancelled() and (error := swap.exception()) is not None:
        logger.error("newer model versions could not be loaded: %s", type(error).__name__)
