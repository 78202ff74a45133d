"""Ahead: what a replica does with an image before its first click, while nobody waits.

An image that was handed out is decoded, prepared for the models that are in use, and segmented as far as that needs no
click: the first mask is kept, and whatever a network computes once per image is there. Background work of the lowest
kind: one image at a time, a few in the queue, before every step (and at each window of a network) it gives way to
clicks, the same annotator's next image replaces the one before, and what goes wrong is told to nobody but the log.
All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from rayapp.errors import RayappError
from rayapp.inference.infer_task import InferTask, Prediction, Prompts, TaskInfo, runs_network
from rayapp.inference.network.cancellation import interruptible
from rayapp.inference.prompts.parse import FOREGROUND
from rayapp.protocol import parse_flag
from rayapp.serving.cache import ByteCache, Sized
from rayapp.serving.executors import Executors, GaveWay
from rayapp.serving.live_versions import Serving
from rayapp.serving.messages import HandedOut
from rayapp.serving.volume_cache import OpenImage, OpenImages

logger = logging.getLogger(__name__)

QUEUE = 8
"""Images that wait, at most; the one that waits longest goes."""
MODELS = 2
"""Models that an image is prepared for, when its annotator did not say which."""
PATIENCE_S = 1.0
"""How long each step waits for a quiet moment. Decoding and preparing, which happen beside the network, go on then."""
TRIES = 5
"""How often a network is asked while clicks keep coming in between; then the image's first click has to do it."""
MASK_BYTES = 128 << 20
"""Of first masks."""
WARMED = 16
"""Images, the last ones used, that a newer version is prepared for before it serves."""


@dataclass(frozen=True, kw_only=True)
class FirstMask:
    """What a model makes of an image without any prompt."""

    prediction: Prediction

    @property
    def nbytes(self) -> int:
        """Bytes of the mask."""
        return self.prediction.labels.nbytes


class Prefetcher:
    """The images handed out to a replica's annotators, and the first masks."""

    def __init__(self, *, executors: Executors, images: OpenImages, serving: Serving) -> None:
        self._executors = executors
        self._images = images
        self._serving = serving
        self._waiting: OrderedDict[Hashable, HandedOut] = OrderedDict()
        self._working: asyncio.Task[None] | None = None
        self._masks: ByteCache[FirstMask] = ByteCache(MASK_BYTES)
        self._used: OrderedDict[str, None] = OrderedDict()

    def handed_out(self, what: HandedOut) -> None:
        """Begin with it as soon as nobody waits."""
        self._waiting.pop(what.annotator, None)
        self._waiting[what.annotator] = what
        if len(self._waiting) > QUEUE:
            self._waiting.popitem(last=False)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    def used(self, model: str) -> None:
        """The model is in use."""
        self._used[model] = None
        self._used.move_to_end(model)

    def first_mask(
        self, model: str, task: InferTask, image: OpenImage, prompts: Prompts, config: Mapping[str, Any]
    ) -> Prediction | None:
        """The answer to a request without prompts, if it is here already."""
        if not _bare(task.info, prompts, config):
            return None
        found = self._masks.kept((image.file, model, task.version))
        return None if found is None else dataclasses.replace(found.prediction, seconds={})

    async def warm(self, model: str, old: InferTask, task: InferTask) -> None:
        """Prepare the images that the old version has prepared for the new one, and run its network once."""
        try:
            prepared = None
            for image in await self._images.recent(model, old.version, WARMED):
                prepared = await self._images.prepared(model, task, image)
                shape = image.volume.shape
            if prepared is not None:
                await self._executors.model(
                    task.predict, prepared, opening_prompts(task.info, shape), {}, network=runs_network(task, prepared)
                )
        except Exception as error:  # an image that went away, a model that sees nothing: the first click warms it then
            logger.info("model %s could not be warmed: %s", model, type(error).__name__)

    async def _work(self) -> None:
        while self._waiting:
            whose, what = next(iter(self._waiting.items()))
            try:
                await self._prepare(what)
            except _Replaced:
                continue
            except (RayappError, OSError) as error:
                logger.info("an image could not be prepared ahead: %s", type(error).__name__)
            except Exception:
                logger.exception("an image could not be prepared ahead")
            if self._waiting.get(whose) is what:
                del self._waiting[whose]

    async def _prepare(self, what: HandedOut) -> None:
        await self._turn(what)
        image = await self._images.open(what.key, what.path)
        for model in [what.model] if what.model else self._likely():
            task = await self._serving.task(model)
            await self._turn(what)
            prepared = await self._images.prepared(model, task, image)
            await self._segment(what, model, task, image, prepared)

    async def _segment(self, what: HandedOut, model: str, task: InferTask, image: OpenImage, prepared: Sized) -> None:
        prompts, key = opening_prompts(task.info, image.volume.shape), (image.file, model, task.version)

        def segment() -> Prediction:
            with interruptible(self._executors.give_way):
                return task.predict(prepared, prompts, {})

        for _ in range(TRIES):
            if self._masks.kept(key) is not None:
                return
            await self._turn(what)
            with contextlib.suppress(GaveWay):
                prediction = await self._executors.model(segment, network=runs_network(task, prepared))
                if _bare(task.info, prompts, {}):
                    self._masks.put(key, FirstMask(prediction=prediction))
                return

    async def _turn(self, what: HandedOut) -> None:
        """Wait until it may go on. Raises _Replaced if it need not any more."""
        await self._executors.quiet(PATIENCE_S)
        if self._waiting.get(what.annotator) is not what:
            raise _Replaced

    def _likely(self) -> list[str]:
        """The models used last; before any was, the first ones of the app that need no drawing."""
        infers = self._serving.app.infers
        used = [model for model in reversed(self._used) if model in infers]
        return (used or [model for model, task in infers.items() if task.info.type != "scribbles"])[:MODELS]

    def close(self) -> None:
        """Stop; from the event loop's thread or once it is over."""
        if self._working is not None:
            self._working.cancel()


class _Replaced(Exception):
    """Its annotator went on to another image, or too many wait."""


def opening_prompts(info: TaskInfo, shape: tuple[int, int, int]) -> Prompts:
    """What runs a model before anybody pointed at anything: nothing where it knows structures, else a click."""
    names = list(info.structures)
    if names:
        return Prompts(label=names[0] if info.takes_drawings else None)
    i, j, k = (n // 2 for n in shape)
    return Prompts(clicks={FOREGROUND: ((i, j, k),)})


def _bare(info: TaskInfo, prompts: Prompts, config: Mapping[str, Any]) -> bool:
    """True where the answer depends on the image alone."""
    usual = all(_usual(name, config[name], default) for name, default in info.config.items() if name in config)
    return usual and not info.takes_drawings and prompts.empty and prompts.roi is None and prompts.slice is None


def _usual(name: str, value: object, default: object) -> bool:
    """True for what a request need not say: a choice's first item, or the value itself."""
    if isinstance(default, bool):
        return parse_flag(value, name) == default
    return value == default or (isinstance(default, list) and value in default[:1])
