"""InferenceService: a click's way through one replica.

Owns the caches of decoded and of prepared volumes, one thread that runs networks (so that a device is never asked for
two things at once), and a pool of threads for disk, decoding and encoding, which run beside it. All methods belong to
one event loop; nothing here blocks it.

The state is a cache only: what an annotator pointed at is in the datastore's click log before the answer goes out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rayapp.app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.protocol import ImageRecord
from rayapp.errors import BadRequest, Superseded
from rayapp.imaging import mask_codec
from rayapp.imaging.placement import read_label_map
from rayapp.imaging.reader import read_volume
from rayapp.imaging.volume import Grid, Segmentation, Volume
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.cache import ByteCache, Sized
from rayapp.inference.click_log import ClickLog, Log, Mask, payload_of
from rayapp.inference.marks import Marks, parse_marks
from rayapp.inference.messages import InferCall, InferReply
from rayapp.inference.prompts import parse_prompts
from rayapp.inference.task import InferTask, Prediction, Prompts
from rayapp.planner import hardware, plan
from rayapp.protocol import Output

logger = logging.getLogger(__name__)

IO_THREADS = 4
PATHS = 10_000
"""Images whose file is remembered."""
WATCH_S = 1.0
"""Seconds between two looks for newer versions."""
WARMED = 16
"""Images, the last ones used, that a newer version is prepared for before it serves."""


class Images(Log, Protocol):
    """What the service needs of the datastore, asynchronously."""

    def image(self, image_id: str) -> Awaitable[ImageRecord]:
        """Where the image is. Raises NotFound."""


class InferenceService:
    """Runs an app's tasks on images, with caches and newest-click-first per annotator."""

    def __init__(self, *, settings: Settings, app: LabelApp, images: Images, threads: int | None = None) -> None:
        """`threads` is how many the network may compute with on the CPU; None leaves it to torch."""
        self._settings = settings
        self._app = app
        self._images = images
        half = (settings.volume_cache or plan(hardware(), sharing=settings.replicas[1]).volume_cache) // 2
        self._volumes: ByteCache[Volume] = ByteCache(half)
        self._prepared: ByteCache[Sized] = ByteCache(half)
        # Each thread that computes in parallel has a team of its own, and with more of them than cores the teams sleep
        # between any two operations: only the network's thread gets one.
        share = partial(torch.set_num_threads, threads or torch.get_num_threads())
        alone = partial(torch.set_num_threads, 1)
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network", initializer=share)
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io", initializer=alone)
        self._swap: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._newest: dict[tuple[str, str | None, str], object] = {}
        self._paths: dict[str, Path] = {}
        self._log = ClickLog(images)
        self._past: tuple[str, str, InferTask] | None = None
        self._recalling = asyncio.Lock()

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call.

        Raises:
            NotFound: unknown model or image.
            BadRequest: prompts that do not fit the image.
            Conflict: nothing to undo or redo.
            Superseded: the same annotator clicked again on the same image before this click reached the network.
        """
        started = time.perf_counter()
        turn, at, onto = call.turn, None, None
        task = await (self._recalled(call.model, call.version) if call.version else self._task(call.model))
        stay = self._enter(call) if turn is None else None
        try:
            volume, origin = await self._volume(call)
            if turn is not None:
                at = await self._log.advance(turn, task.info, task.version, volume.shape)
                call, stay = dataclasses.replace(call, params=at.params), self._enter(call)
                onto = self._log.mask(turn.onto)
            prompts = parse_prompts(call.params, task.info, volume.shape)
            if call.mask is not None and task.info.type == "scribbles":
                marks = await self._on(self._io, self._marks, call.mask, volume, call, task)
                prompts = dataclasses.replace(prompts, marks=marks)
            prepared = await self._prepare(task, volume, origin, call.model)
            prepared_at = time.perf_counter()
            try:
                prediction = await self._on(self._network, self._predict, stay, call, task, prepared, prompts)
            except Superseded:
                await self._record(call, task, prompts)
                raise
            except BadRequest:
                if turn is None or at is None:
                    raise
                if at.done:
                    await self._log.withdraw(turn, at.step)
                    raise
                # A model that makes nothing of nothing: all was undone.
                prediction = Prediction(labels=np.zeros(volume.shape, np.uint8, order="F"))
        finally:
            self._leave(call, stay)
        # Only now, since the log's work on the same cores would hold up the network's threads.
        logged = asyncio.ensure_future(self._record(call, task, prompts))
        body, ext, seconds = await self._on(self._io, _encode, prediction, volume, task, call, onto)
        await logged
        spent = prediction.seconds
        latencies = {**spent, "pre": prepared_at - started + spent.get("pre", 0.0), "write": seconds}
        params = _params(task, prediction, latencies, started)
        if turn is not None and at is not None:
            params["interaction"] = self._log.told(turn, at, prediction.labels, onto)
        return InferReply(body=body, ext=ext, params=params)

    async def _task(self, model: str) -> InferTask:
        """The task that serves now. A newer version is loaded and warmed beside it, and only then takes its place;
        calls under way finish on the version they began with."""
        cold = self._watch is None  # nobody was served yet: nobody holds on to the old version
        if cold:
            self._watch = asyncio.create_task(self._watching())
        while (serving := await self._serving(model)) != self._app.serving.get(model):
            swap = self._swapping()
            if serving is not None and model in self._app.infers and not cold:
                break
            await asyncio.shield(swap)
        return self._app.task(model)

    async def _recalled(self, model: str, version: str) -> InferTask:
        """A version that need not serve, for a replay. The last one asked for is kept. Raises NotFound."""
        async with self._recalling:
            if self._past is None or self._past[:2] != (model, version):
                made = await self._on(self._io, lambda: self._app.make_task(self._app.models.version(model, version)))
                self._past = (model, version, made)
            return self._past[2]

    async def _serving(self, model: str) -> str | None:
        serving: str | None = await self._on(self._io, self._app.models.serving, model)
        return serving

    async def _watching(self) -> None:
        """Look for newer versions also while nobody asks, so that nobody has to be the first to ask for one."""
        while True:
            await asyncio.sleep(WATCH_S)
            for model in list(self._app.infers):
                if await self._serving(model) != self._app.serving.get(model):
                    self._swapping()

    def _swapping(self) -> asyncio.Task[None]:
        """The swap to the app as it is now: the one under way, or a new one."""
        if self._swap is None or self._swap.done():
            self._swap = asyncio.create_task(self._renew())
            self._swap.add_done_callback(_noticed)
        return self._swap

    async def _renew(self) -> None:
        app = await self._on(self._io, self._app.renewed)
        for model, task in app.infers.items():
            old = self._app.infers.get(model)
            if old is not None and old is not task:
                await self._warm(model, old, task)
        self._app = app

    async def _warm(self, model: str, old: InferTask, task: InferTask) -> None:
        """Prepare the images that the old version has prepared, and run the network once."""
        recent = [key[:-2] for key in self._prepared.newest(WARMED) if key[-2:] == (model, old.version)]
        try:
            for origin in recent:
                volume = await self._volumes.get(origin, partial(self._on, self._io, self._read, Path(origin[1])))
                prepared = await self._prepare(task, volume, origin, model)
            if recent:
                await self._on(self._network, task.predict, prepared, Prompts(), {})
        except Exception as error:  # an image that went away, a model that needs a click: the first click warms it then
            logger.info("model %s could not be warmed: %s", model, type(error).__name__)

    async def _volume(self, call: InferCall) -> tuple[Volume, tuple[Any, ...]]:
        path, stamp = await self._file(call)
        # The file's identity is part of the key: a replaced file can never show another patient's voxels.
        origin = (call.key, str(path), stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
        volume = await self._volumes.get(origin, lambda: self._on(self._io, self._read, path))
        return volume, origin

    async def _file(self, call: InferCall) -> tuple[Path, os.stat_result]:
        """The image's file and what it is now. The datastore is asked again only where it was not before."""
        known = call.path or self._paths.get(call.key)
        if known is not None:
            try:
                return known, await self._on(self._io, known.stat)
            except FileNotFoundError:
                if call.path is not None:
                    raise
        path = (await self._images.image(call.key)).path
        if len(self._paths) >= PATHS:
            self._paths.clear()
        self._paths[call.key] = path
        return path, await self._on(self._io, path.stat)

    async def _prepare(self, task: InferTask, volume: Volume, origin: tuple[Any, ...], model: str) -> Sized:
        def prepare() -> Sized:
            task.load()
            return task.prepare(volume)

        return await self._prepared.get((*origin, model, task.version), lambda: self._on(self._io, prepare))

    async def _record(self, call: InferCall, task: InferTask, prompts: Prompts) -> None:
        """Log the prompts; sessions and uploads have no image to log to, and a turn is in the log already."""
        if call.path is None and call.turn is None and (prompts.clicks or prompts.curves or prompts.marks is not None):
            await self._log.record(call, task.version, prompts, await self._on(self._io, payload_of, prompts))

    def _read(self, path: Path) -> Volume:
        return read_volume(path, max_bytes=self._settings.max_volume)

    def _marks(self, path: Path, volume: Volume, call: InferCall, task: InferTask) -> Marks:
        grid = Grid(shape=volume.shape, affine=volume.affine)
        label_map = read_label_map(path, grid, max_bytes=self._settings.max_volume)
        return parse_marks(label_map.array, call.params, task.info.labels)

    def _predict(
        self, stay: object | None, call: InferCall, task: InferTask, prepared: Sized, prompts: Prompts
    ) -> Prediction:
        if stay is not None and self._newest.get(_annotator(call)) is not stay:
            raise Superseded("a newer click on this image replaced this one")
        return task.predict(prepared, prompts, call.params)

    def _enter(self, call: InferCall) -> object | None:
        """Become this annotator's newest call on this image; None for callers that cannot be told apart."""
        if call.client_id is None:
            return None
        stay = self._newest[_annotator(call)] = object()
        return stay

    def _leave(self, call: InferCall, stay: object | None) -> None:
        if stay is not None and self._newest.get(_annotator(call)) is stay:
            del self._newest[_annotator(call)]

    async def _on(self, pool: ThreadPoolExecutor, function: Any, /, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

    def close(self) -> None:
        """Stop the threads; calls still queued are dropped. From any thread, once nobody calls any more."""
        if self._watch is not None:
            self._watch.cancel()
        self._network.shutdown(wait=False, cancel_futures=True)
        self._io.shutdown(wait=False, cancel_futures=True)


def _noticed(swap: asyncio.Task[None]) -> None:
    """Say it if a swap failed; the old app serves on, and the next look tries again."""
    if not swap.cancelled() and (error := swap.exception()) is not None:
        logger.error("the app could not be renewed: %s", type(error).__name__)


def _annotator(call: InferCall) -> tuple[str, str | None, str]:
    return call.user, call.client_id, call.key


def _encode(
    prediction: Prediction, volume: Volume, task: InferTask, call: InferCall, onto: Mask | None
) -> tuple[bytes | None, str, float]:
    began = time.perf_counter()
    body: bytes | None
    if call.output is Output.JSON:
        body = None
    elif call.output is Output.BOX:
        body = mask_codec.encode(prediction.labels, onto)
    else:
        names = {name: value for name, value in task.info.labels.items() if value}
        mask = Segmentation(array=prediction.labels, affine=volume.affine, names=names)
        wide = call.params.get("result_dtype") == "uint16"
        body = encode_segmentation(mask, call.ext, dtype=np.dtype(np.uint16 if wide else np.uint8))
    return body, call.ext, time.perf_counter() - began


def _params(task: InferTask, prediction: Prediction, latencies: Mapping[str, float], started: float) -> dict[str, Any]:
    stages = {name: round(latencies.get(name, 0.0), 4) for name in ("pre", "infer", "invert", "post", "write")}
    return {
        "label_names": dict(task.info.labels),
        "latencies": {**stages, "total": round(time.perf_counter() - started, 4), "transform": {}},
        "centroids": {},
        "model_version": task.version,
        **prediction.params,
    }
