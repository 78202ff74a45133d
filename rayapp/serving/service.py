"""InferenceService: a click's way through one replica.

A call that stands for itself (3D Slicer, OHIF) and a turn of an interaction (ours) both go: open the image, understand
the prompts, prepare, run the model, encode. What they share is here; the parts have modules of their own: `images` and
`ahead` hold caches, `serving` the versions, `lanes` the threads. All methods belong to one event loop; nothing here
blocks it.

The state is a cache only: what an annotator pointed at is in the datastore's click log before the answer goes out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rayapp.app import app_traceback, validation
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.errors import AppBroken, BadRequest, Superseded
from rayapp.imaging import mask_codec
from rayapp.imaging.placement import read_label_map
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.infer_task import InferTask, Prediction, Prompts, StagedTask, runs_network
from rayapp.inference.network.cancellation import interruptible
from rayapp.inference.prompts.parse import START_MASK_TYPES, parse_prompts
from rayapp.inference.prompts.scribble_map import parse_marks, parse_start
from rayapp.inference.prompts.to_clicks import enforce_drawings, lower_drawings
from rayapp.planner import hardware, plan
from rayapp.protocol import Output
from rayapp.serving.click_log import ClickLog, Log, Mask, payload_of
from rayapp.serving.executors import Executors
from rayapp.serving.live_versions import Serving
from rayapp.serving.messages import HandedOut, InferCall, InferReply, Turn
from rayapp.serving.prefetch import Prefetcher
from rayapp.serving.supersession import Check, Supersession
from rayapp.serving.volume_cache import Images, OpenImage, OpenImages


class Store(Images, Log, Protocol):
    """What the service needs of the datastore, asynchronously."""


ENDED: Any = object()
"""In the place of an answer when there is no further one."""
Ask = Callable[["Work", Any, Prompts], Iterator[Prediction]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A call as it is understood: the model, the image, and all the prompts. `check` raises Superseded once the
    annotator's newer call is here; `began` is when the call came."""

    call: InferCall
    task: InferTask
    image: OpenImage
    prompts: Prompts
    check: Check
    began: float


class InferenceService:
    """Runs an app's tasks on images, with caches and newest-click-first per annotator."""

    def __init__(self, *, settings: Settings, app: LabelApp, images: Store, threads: int | None = None) -> None:
        """`threads` is how many the network may compute with on the CPU; None leaves it to torch."""
        self.hung = False
        """True once a model did not come back in time: its thread cannot be ended but with the process."""
        self._max_volume, self._max_answer = settings.max_volume, settings.max_answer
        self._app_dir = app.app_dir
        capacity = settings.volume_cache or plan(hardware(), sharing=settings.replicas[1]).volume_cache
        self._lanes = Executors(threads=threads)
        self._images = OpenImages(images=images, lanes=self._lanes, capacity=capacity, max_volume=settings.max_volume)
        self._log = ClickLog(images)
        self._newest = Supersession()
        self._serving = Serving(app=app, lanes=self._lanes, warm=lambda *models: self._ahead.warm(*models))
        self._ahead = Prefetcher(lanes=self._lanes, images=self._images, serving=self._serving)

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call; of a model that answers in stages, what its `predict` makes of a call that stands alone, and
        the last answer to a turn of an interaction.

        Raises:
            NotFound: unknown model or image.
            BadRequest: prompts that do not fit the image.
            Conflict: nothing to undo or redo.
            Superseded: the same annotator clicked again on the same image before this click was through the network.
        """
        with self._lanes.click():
            if call.turn is None:
                return await self._alone(call)
            async with aclosing(self._turn(call, call.turn, _last)) as replies:
                return await anext(replies)

    async def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """Answer a turn as soon as there is something to show, then with what is better. Raises as `infer`."""
        if call.turn is None:
            raise BadRequest("only an interaction is answered in stages")
        with self._lanes.click():
            async with aclosing(self._turn(call, call.turn, _stages)) as replies:
                async for reply in replies:
                    yield reply

    def prefetch(self, handed_out: HandedOut) -> None:
        """Somebody is about to work on an image: have it ready, if there is time before the first click."""
        self._ahead.handed_out(handed_out)

    async def _alone(self, call: InferCall) -> InferReply:
        """A call that stands for itself. Its prompts are logged once they are understood, whatever comes of them."""
        began = time.perf_counter()
        task = await self._task(call)
        with self._newest.place(_annotator(call)) as check:
            image = await self._images.open(call.key, call.path)
            prompts = await self._lanes.io(self._prompts, call, task, image)
            work = Work(call=call, task=task, image=image, prompts=prompts, check=check, began=began)
            try:
                async with aclosing(self._predictions(work, _best)) as predictions:
                    prediction = await anext(predictions)
            except Superseded:
                await self._record(work)
                raise
        # Only now, since the log's work on the same cores would hold up the network's threads.
        logged = asyncio.ensure_future(self._record(work))
        reply = await self._reply(work, prediction, None, {})
        await logged
        return reply

    async def _turn(self, call: InferCall, turn: Turn, ask: Ask) -> AsyncGenerator[InferReply, None]:
        """A turn of an interaction: it is logged first, then all of the interaction's prompts are asked about."""
        began = time.perf_counter()
        task = await self._task(call)
        image = await self._images.open(call.key, call.path)
        at = await self._log.advance(turn, task.info, task.version, image.volume.shape)
        call = replace(call, params=at.params)
        with self._newest.place(_annotator(call)) as check:
            prompts = await self._lanes.io(self._prompts, call, task, image)
            work = Work(call=call, task=task, image=image, prompts=prompts, check=check, began=began)
            token, onto = turn.onto, self._log.mask(turn.onto)
            try:
                async with aclosing(self._predictions(work, ask)) as predictions:
                    async for prediction in predictions:
                        told = self._log.told(turn, at, prediction.labels, "" if onto is None else token)
                        yield await self._reply(work, prediction, onto, {"interaction": told})
                        token, onto = told["mask"], prediction.labels
            except BadRequest:
                if at.done:
                    await self._log.withdraw(turn, at.step)
                    raise
                # A model that makes nothing of nothing: all was undone.
                nothing = Prediction(labels=np.zeros(image.volume.shape, np.uint8, order="F"))
                told = self._log.told(turn, at, nothing.labels, "" if onto is None else token)
                yield await self._reply(work, nothing, onto, {"interaction": told})

    async def _task(self, call: InferCall) -> InferTask:
        task = await self._serving.task(call.model, call.version)
        self._ahead.used(call.model)
        return task

    async def _predictions(self, work: Work, ask: Ask) -> AsyncGenerator[Prediction, None]:
        """What the model makes of it, each as soon as it is asked for."""
        first = self._ahead.first_mask(work.call.model, work.task, work.image, work.prompts, work.call.params)
        if first is not None:
            yield first
            return
        prepared = await self._images.prepared(work.call.model, work.task, work.image)
        waited = time.perf_counter() - work.began
        info, shape = work.task.info, work.image.volume.shape
        answers = ask(work, prepared, lower_drawings(work.prompts, info, shape))

        def following() -> Prediction | None:
            with interruptible(work.check):
                found = next(answers, ENDED)
            if found is ENDED:
                return None
            found = validation.checked_answer(found, work.task, shape, self._app_dir)
            return replace(found, labels=enforce_drawings(found.labels, work.prompts, info))

        network = runs_network(work.task, prepared)
        while (prediction := await self._in_time(work, following, network=network)) is not None:
            spent = prediction.seconds
            yield replace(prediction, seconds={**spent, "pre": waited + spent.get("pre", 0.0)})

    async def _in_time(
        self, work: Work, following: Callable[[], Prediction | None], *, network: bool
    ) -> Prediction | None:
        limit = asyncio.timeout(self._max_answer)
        try:
            async with limit:
                return await self._lanes.model(following, network=network)
        except TimeoutError:
            if not limit.expired():  # the model's own
                raise
            self.hung = True
            where = app_traceback.definition(type(work.task), self._app_dir)
            text = f"model {work.call.model!r}, {where}, did not answer within {self._max_answer:g} s"
            raise AppBroken(f"{text}: its process is replaced") from None

    async def _reply(
        self, work: Work, prediction: Prediction, onto: Mask | None, told: Mapping[str, Any]
    ) -> InferReply:
        body, ext, seconds = await self._lanes.io(_encode, work, prediction, onto)
        return InferReply(body=body, ext=ext, params={**_params(work, prediction, seconds), **told})

    async def _record(self, work: Work) -> None:
        """Log the prompts; sessions and uploads have no image to log to."""
        if work.call.path is None and not work.prompts.empty:
            payload = await self._lanes.io(payload_of, work.prompts)
            await self._log.record(work.call, work.task.version, work.prompts, payload)

    def _prompts(self, call: InferCall, task: InferTask, image: OpenImage) -> Prompts:
        """All that the call says, and shows in its label map: scribbles, or a mask to start from."""
        info, shape = task.info, image.volume.shape
        prompts = parse_prompts(call.params, info, shape)
        if call.mask is None or not (info.takes_drawings or info.type in START_MASK_TYPES):
            return prompts
        grid = Grid(shape=shape, affine=image.volume.affine)
        label_map = read_label_map(call.mask, grid, max_bytes=self._max_volume).array
        if info.type not in START_MASK_TYPES:
            return replace(prompts, marks=parse_marks(label_map, call.params, info.labels))
        return replace(prompts, start=parse_start(label_map, call.params, info.labels))

    def close(self) -> None:
        """Stop the threads; calls still queued are dropped. From any thread, once nobody calls any more."""
        self._serving.close()
        self._ahead.close()
        self._lanes.close()


def _best(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """One answer."""
    yield work.task.predict(prepared, prompts, work.call.params)


def _stages(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """All answers."""
    if isinstance(work.task, StagedTask):
        return work.task.stages(prepared, prompts, work.call.params)
    return _best(work, prepared, prompts)


def _last(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """The best answer, which does not depend on whether the stages before it were looked at."""
    *_, last = _stages(work, prepared, prompts)
    yield last


def _annotator(call: InferCall) -> tuple[str, str, str] | None:
    """None for callers that cannot be told apart."""
    return None if call.client_id is None else (call.user, call.client_id, call.key)


def _encode(work: Work, prediction: Prediction, onto: Mask | None) -> tuple[bytes | None, str, float]:
    """The reply's body, its extension, and the seconds that took."""
    began = time.perf_counter()
    call, body, ext = work.call, None, work.call.ext
    if call.output is Output.BOX:
        body = mask_codec.encode(prediction.labels, onto)
    elif call.output is not Output.JSON and prediction.document is not None:
        body, ext = prediction.document, ".json"
    elif call.output is not Output.JSON:
        mask = Segmentation(array=prediction.labels, affine=work.image.volume.affine, names=work.task.info.structures)
        wide = call.params.get("result_dtype") == "uint16"
        body = encode_segmentation(mask, call.ext, dtype=np.dtype(np.uint16 if wide else np.uint8))
    return body, ext, time.perf_counter() - began


def _params(work: Work, prediction: Prediction, write_s: float) -> dict[str, Any]:
    latencies = {**prediction.seconds, "write": write_s}
    stages = {name: round(latencies.get(name, 0.0), 4) for name in ("pre", "infer", "invert", "post", "write")}
    return {
        "label_names": dict(work.task.info.labels),
        "latencies": {**stages, "total": round(time.perf_counter() - work.began, 4), "transform": {}},
        "centroids": {},
        "model_version": work.task.version,
        **prediction.params,
    }
