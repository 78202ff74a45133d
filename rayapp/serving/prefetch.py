"""Prefetching: open and prepare an image before its first click, while the replica is idle.

An image that was handed out is decoded, prepared for the models in use, and segmented as far as possible without a
click: the first mask is cached, and so are results that a network computes once per image. This is background work of
the lowest priority: one image at a time and a short queue; it yields to clicks before every step and at each window of
a network; an annotator's next image replaces their previous one; errors are only logged. All methods belong to one
event loop.
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
from rayapp.serving.lane import Rank
from rayapp.serving.live_versions import Serving
from rayapp.serving.messages import HandedOut
from rayapp.serving.volume_cache import OpenImage, OpenImages

logger = logging.getLogger(__name__)

QUEUE = 8
"""Maximum number of images in the queue; the oldest is dropped."""
MODELS = 2
"""Number of models that an image is prepared for, if the annotator's model is not known."""
PATIENCE_S = 1.0
"""Longest wait for an idle moment before each step; decoding and preparing then start anyway, in parallel to the
network."""
TRIES = 5
"""Number of attempts to run a network that clicks may interrupt; after these the image's first click runs it."""
MASK_BYTES = 128 << 20
"""Bytes of first masks in the cache."""
WARMED = 16
"""Number of most recently used images that are prepared for a newer version before it is served."""


@dataclass(frozen=True, kw_only=True)
class FirstMask:
    """A model's prediction on an image without any prompt."""

    prediction: Prediction

    @property
    def nbytes(self) -> int:
        """Bytes of the mask."""
        return self.prediction.labels.nbytes


class Prefetcher:
    """Prefetches the images handed out to a replica's annotators, and caches first masks."""

    def __init__(self, *, executors: Executors, images: OpenImages, serving: Serving) -> None:
        self._executors = executors
        self._images = images
        self._serving = serving
        self._waiting: OrderedDict[Hashable, HandedOut] = OrderedDict()
        self._working: asyncio.Task[None] | None = None
        self._masks: ByteCache[FirstMask] = ByteCache(MASK_BYTES)
        self._used: OrderedDict[str, None] = OrderedDict()

    def handed_out(self, what: HandedOut) -> None:
        """Queue an image; it takes the place of the annotator's previous one."""
        self._waiting.pop(what.annotator, None)
        self._waiting[what.annotator] = what
        if len(self._waiting) > QUEUE:
            self._waiting.popitem(last=False)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    def used(self, model: str) -> None:
        """Record that a model is in use."""
        self._used[model] = None
        self._used.move_to_end(model)

    def first_mask(
        self, model: str, task: InferTask, image: OpenImage, prompts: Prompts, config: Mapping[str, Any]
    ) -> Prediction | None:
        """The cached prediction for a request without prompts, None if there is none."""
        if not _bare(task.info, prompts, config):
            return None
        mask = self._masks.kept((image.file, model, task.version))
        return None if mask is None else dataclasses.replace(mask.prediction, seconds={})

    def forget_masks(self) -> None:
        """Drop all predictions that were made ahead."""
        self._masks.clear()

    async def warm(self, model: str, old: InferTask, task: InferTask) -> None:
        """Prepare, for a new version, the images that are prepared for the old one, and run its network once."""
        try:
            prepared = None
            for image in await self._images.recent(model, old.version, WARMED):
                prepared = await self._images.prepared(model, task, image)
                shape = image.volume.shape
            if prepared is not None:
                prompts, network = opening_prompts(task.info, shape), runs_network(task, prepared)

                def run() -> None:
                    with interruptible(self._executors.let_pass if network else lambda: None):
                        task.predict(prepared, prompts, {})

                # By turns with proposals: a steady load of them must not keep the new version from being served.
                await self._executors.model(run, network=network, rank=Rank.PROPOSAL, whose=("version", model))
        except Exception as error:  # such as an image that was removed: then the first click warms it
            logger.info("model %s could not be warmed: %s", model, type(error).__name__)

    async def _work(self) -> None:
        while self._waiting:
            whose, what = next(iter(self._waiting.items()))
            try:
                await self._prepare(what)
            except _Replaced:
                continue
            except (RayappError, OSError) as error:
                logger.info("an image could not be prefetched: %s", type(error).__name__)
            except Exception:
                logger.exception("an image could not be prefetched")
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
                prediction = await self._executors.model(segment, network=runs_network(task, prepared), rank=Rank.AHEAD)
                if _bare(task.info, prompts, {}):
                    self._masks.put(key, FirstMask(prediction=prediction))
                return

    async def _turn(self, what: HandedOut) -> None:
        """Wait for an idle moment. Raises _Replaced if the image is no longer needed."""
        await self._executors.quiet(PATIENCE_S)
        if self._waiting.get(what.annotator) is not what:
            raise _Replaced

    def _likely(self) -> list[str]:
        """The most recently used models; if none was used yet, the app's first ones that need no drawing."""
        infers = self._serving.app.infers
        used = [model for model in reversed(self._used) if model in infers]
        return (used or [model for model, task in infers.items() if task.info.type != "scribbles"])[:MODELS]

    def close(self) -> None:
        """Stop. Call it from the event loop's thread, or once the loop has ended."""
        if self._working is not None:
            self._working.cancel()


class _Replaced(Exception):
    """The annotator moved on to another image, or the queue was full."""


def opening_prompts(info: TaskInfo, shape: tuple[int, int, int]) -> Prompts:
    """Prompts that run a model before the first click: none if it knows structures, else a click in the centre."""
    names = list(info.structures)
    if names:
        return Prompts(label=names[0] if info.takes_drawings else None)
    i, j, k = (n // 2 for n in shape)
    return Prompts(clicks={FOREGROUND: ((i, j, k),)})


def _bare(info: TaskInfo, prompts: Prompts, config: Mapping[str, Any]) -> bool:
    """True if the prediction depends on the image alone."""
    usual = all(_usual(name, config[name], default) for name, default in info.config.items() if name in config)
    return usual and not info.takes_drawings and prompts.empty and prompts.roi is None and prompts.slice is None


def _usual(name: str, value: object, default: object) -> bool:
    """True if an option has its default value; of a list of choices that is the first."""
    if isinstance(default, bool):
        return parse_flag(value, name) == default
    return value == default or (isinstance(default, list) and value in default[:1])
