"""InferenceService: a click's way through one replica.

A call that stands alone (3D Slicer, OHIF) and a turn of an interaction (our clients) both go: open the image, parse the
prompts, prepare, run the model, encode. The steps they share are here; `OpenImages` and `Prefetcher` hold the caches,
`Serving` the model versions, `Executors` the threads. All methods belong to one event loop and never block it.

A replica's state is a cache only: an annotator's prompts are in the datastore's click log before they are answered.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rayapp.app import app_traceback, validation
from rayapp.app.app_loader import app_class
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author, ClickEvent, Info, LabelRecord
from rayapp.errors import AppBroken, BadRequest, Superseded
from rayapp.imaging.placement import read_label_map
from rayapp.imaging.volume import Grid
from rayapp.inference.infer_task import InferTask, Prediction, Prompts, runs_network
from rayapp.inference.network.cancellation import interruptible
from rayapp.inference.prompts.parse import START_MASK_TYPES, parse_prompts
from rayapp.inference.prompts.scribble_map import parse_marks, parse_start
from rayapp.inference.prompts.to_clicks import enforce_drawings, lower_drawings
from rayapp.planner.machine import hardware
from rayapp.planner.replicas import Plan, plan
from rayapp.protocol import Output
from rayapp.serving.answer_clock import AnswerClock
from rayapp.serving.ask import Ask, best, last, stages
from rayapp.serving.click_log import ClickLog, Log, Mask, Parse, payload_of
from rayapp.serving.encoding import encode_dicom_seg, encode_file, encode_reply, reply_params
from rayapp.serving.executors import Executors
from rayapp.serving.interaction import PROMPT, REDO, Interaction
from rayapp.serving.lane import Rank
from rayapp.serving.live_versions import Reload, Serving
from rayapp.serving.messages import HandedOut, InferCall, InferReply, SaveAs, Turn
from rayapp.serving.prefetch import Prefetcher
from rayapp.serving.stage import Stage
from rayapp.serving.supersession import Supersession
from rayapp.serving.volume_cache import Images, OpenImage, OpenImages
from rayapp.serving.work import Work


class Store(Images, Log, Protocol):
    """The part of the datastore that the service needs, asynchronously; see `rayapp.datastore.interfaces`."""

    def instances(self, image_id: str) -> Awaitable[Path]:
        """See `ImageStore`."""

    def stage(self, suffix: str) -> Awaitable[Path]:
        """See `Datastore`."""

    def save_label(
        self,
        image_id: str,
        tag: str,
        staged: Path,
        ext: str,
        *,
        info: Mapping[str, Any],
        author: Author,
        model_version: str | None = None,
        expected: int | None = None,
    ) -> Awaitable[LabelRecord]:
        """See `LabelStore`."""


_ENDED: Any = object()
"""Instead of a prediction, once there is no further one; a task may wrongly return anything, None included."""


class InferenceService:
    """Runs an app's models on images, with caches; an annotator's newer click on an image supersedes the older one."""

    def __init__(self, *, settings: Settings, app: LabelApp, images: Store, share: Plan | None = None) -> None:
        """Args:
        settings: of the server.
        app: loaded.
        images: the datastore.
        share: this replica's threads and volume cache; None for the whole machine and torch's own number of threads.
        """
        self.hung = False
        """True once a model did not come back in time: its thread cannot be ended but with the process."""
        self._max_volume, self._max_answer = settings.max_volume, settings.max_answer
        self._segmentation_kind = settings.dicomweb.segmentation
        self._app_dir = app.app_dir
        self._store = images
        chosen = share or plan(hardware())
        self._executors = Executors(threads=share.threads if share else None)
        self._images = OpenImages(
            images=images,
            executors=self._executors,
            capacity=settings.volume_cache or chosen.volume_cache,
            max_volume=settings.max_volume,
            prepared=chosen.prepared_cache,
        )
        self._log = ClickLog(images)
        self._supersession = Supersession()
        self._settings = settings
        self._serving = Serving(
            app=app,
            executors=self._executors,
            warm=lambda *models: self._prefetcher.warm(*models),
            reload=Reload(load=self._reloaded, done=self._forget),
        )
        self._prefetcher = Prefetcher(executors=self._executors, images=self._images, serving=self._serving)

    def _reloaded(self) -> LabelApp:
        """The app with its code loaded anew."""
        app = app_class(self._settings).of(self._settings)
        app.load_all()
        return app

    def _forget(self) -> None:
        """Drop what the app's old code prepared and predicted."""
        self._images.forget_prepared()
        self._prefetcher.forget_masks()

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call. Of a model that answers in stages a call that stands alone gets the prediction of `predict`,
        a turn the last stage.

        Raises:
            NotFound: unknown model or image.
            BadRequest: prompts that do not fit the image, or an output that the model or the image does not allow.
            Conflict: nothing to undo or redo.
            Superseded: the same annotator clicked again on the same image before this click was through the network.
        """
        with self._executors.click():
            if call.turn is None:
                return await self._alone(call)
            async with aclosing(self._turn(call, call.turn, last)) as replies:
                return await anext(replies)

    async def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """Answer a turn as soon as there is a first mask, then with every better one. Raises as `infer`.

        Of an answer that broke off, only what the client lacks is sent: nothing, if it has the last mask.
        """
        if call.turn is None:
            raise BadRequest("only turns of an interaction are answered in stages")
        with self._executors.click():
            async with aclosing(self._turn(call, call.turn, stages)) as replies:
                async for reply in replies:
                    yield reply

    def prefetch(self, handed_out: HandedOut) -> None:
        """Open and prepare an image that an annotator is about to work on, if there is time before the first click."""
        self._prefetcher.handed_out(handed_out)

    async def _alone(self, call: InferCall) -> InferReply:
        """Answer a call that stands alone. Its prompts are logged once they are parsed, whatever comes of them."""
        began = time.perf_counter()
        task = await self._task(call)
        with self._supersession.place(_annotator(call)) as check:
            hits: dict[str, bool] = {}
            image = await self._images.open(call.key, call.path, hits)
            instances = await self._instances(call) if call.output is Output.DICOM_SEG else None
            prompts = await self._executors.io(self._prompts, call, task, image)
            work = Work(call=call, task=task, image=image, prompts=prompts, check=check, began=began, hits=hits)
            try:
                async with aclosing(self._predictions(work, best)) as predictions:
                    prediction = await anext(predictions)
            except Superseded:
                await self._record(work)
                raise
        # Only now, since the log's work on the same cores would hold up the network's threads.
        logged = asyncio.ensure_future(self._record(work))
        reply = await self._reply(work, prediction, None, {})
        if call.save is not None:
            await self._save(work, prediction, reply, call.save)
        if instances is not None:
            encode = functools.partial(encode_dicom_seg, kind=self._segmentation_kind)
            body = await self._executors.io(encode, work, prediction, reply.params, instances)
            reply = replace(reply, body=body, ext=".dcm")
        await logged
        return reply

    async def _turn(self, call: InferCall, turn: Turn, ask: Ask) -> AsyncGenerator[InferReply, None]:
        """Answer a turn of an interaction: it is logged first, then the model gets all prompts in force."""
        began = time.perf_counter()
        task = await self._task(call)
        hits: dict[str, bool] = {}
        image = await self._images.open(call.key, call.path, hits)

        def parse(params: Mapping[str, Any]) -> Awaitable[Prompts]:
            return self._executors.io(self._prompts, replace(call, params=params), task, image)

        at, _ = await self._log.advance(turn, task.info, task.version, parse)
        with self._supersession.place(_annotator(call)) as check:
            started = Work(call=call, task=task, image=image, prompts=Prompts(), check=check, began=began, hits=hits)
            seen = Stage.of_id(turn.last_event)
            token = seen.mask if seen else turn.onto
            onto = self._log.mask(token)
            while True:
                numbers = itertools.count()
                work = await _with_prompts(started, at, parse)
                try:
                    async with aclosing(self._predictions(work, ask)) as predictions:
                        async for prediction in predictions:
                            stage = Stage.of(step=at.step, number=next(numbers), version=task.version)
                            if seen and seen.covers(stage):
                                continue
                            state = self._log.described(turn, at, prediction.labels, "" if onto is None else token)
                            if ask is last:  # nothing more is asked for, so this never gets to its end
                                self._log.answer(at)
                            yield await self._staged(work, prediction, onto, stage, state)
                            token, onto = state["mask"], prediction.labels
                    self._log.answer(at)
                    return
                except BadRequest:
                    if not at.done:
                        break
                    if turn.event is None:
                        raise
                    refused = await self._refused(turn.event, work, at, parse)
                    for step in refused:
                        await self._log.withdraw(turn, step)
                    if not refused or at.step in refused:
                        raise
                    # Earlier prompts that were superseded before the model saw them; this one is answered without them.
                    at = replace(at, done=tuple(prompt for prompt in at.done if prompt["step"] not in refused))
            # Everything was undone, and the model does not answer without prompts: an empty mask.
            stage = Stage.of(step=at.step, number=0, version=task.version)
            if seen and seen.covers(stage):
                return
            empty = Prediction(labels=np.zeros(image.volume.shape, np.uint8, order="F"))
            state = self._log.described(turn, at, empty.labels, "" if onto is None else token)
            yield await self._staged(work, empty, onto, stage, state)

    async def _refused(self, event: ClickEvent, work: Work, at: Interaction, parse: Parse) -> list[int]:
        """Steps of the prompts in force that the model cannot work with: that of the turn itself, or those before it
        that were never answered.
        """
        own = at.done[-1:] if event.kind in (PROMPT, REDO) else ()
        earlier = [prompt for prompt in self._log.unanswered(at) if prompt not in own]
        kept = [prompt for prompt in at.done if prompt not in earlier]

        async def accepts(prompts: list[Info]) -> bool:
            if not prompts:
                return True
            tried = await _with_prompts(work, replace(at, done=tuple(prompts)), parse)
            try:
                async with aclosing(self._predictions(tried, last)) as predictions:
                    await anext(predictions)
            except BadRequest:
                return False
            return True

        if own and not (earlier and await accepts(kept)):
            return [int(prompt["step"]) for prompt in own]
        refused = []
        for prompt in earlier:
            more = sorted([*kept, prompt], key=lambda each: int(each["step"]))
            if await accepts(more):
                kept = more
            else:
                refused.append(int(prompt["step"]))
        return refused

    async def _task(self, call: InferCall) -> InferTask:
        task = await self._serving.task(call.model, call.version)
        self._prefetcher.used(call.model)
        return task

    async def _predictions(self, work: Work, ask: Ask) -> AsyncGenerator[Prediction, None]:
        """The model's predictions, each computed when it is asked for."""
        call = work.call
        resumed = call.turn is not None and call.turn.last_event  # then stages must be counted as they were before
        first = self._prefetcher.first_mask(call.model, work.task, work.image, work.prompts, call.params)
        if first is not None and not resumed:
            yield first
            return
        prepared = await self._images.prepared(call.model, work.task, work.image, work.hits)
        waited = time.perf_counter() - work.began
        info, shape = work.task.info, work.image.volume.shape
        answers = ask(work, prepared, lower_drawings(work.prompts, info, shape))

        network = runs_network(work.task, prepared)
        lets_pass = network and work.rank is not Rank.CLICK

        def following(clock: AnswerClock) -> Prediction | None:
            def check() -> None:
                work.check()
                if lets_pass and self._executors.click_waits:
                    clock.paused(self._executors.let_pass)

            with interruptible(check):
                answer = next(answers, _ENDED)
            if answer is _ENDED:
                return None
            prediction = validation.checked_prediction(answer, work.task, shape, self._app_dir)
            return replace(prediction, labels=enforce_drawings(prediction.labels, work.prompts, info))

        while (prediction := await self._in_time(work, following, network=network)) is not None:
            spent = prediction.seconds
            yield replace(prediction, seconds={**spent, "pre": waited + spent.get("pre", 0.0)})

    async def _in_time(
        self, work: Work, following: Callable[[AnswerClock], Prediction | None], *, network: bool
    ) -> Prediction | None:
        """The model's next answer, for which it may compute `max_answer` seconds; its waiting is not counted."""
        clock, asked = AnswerClock(self._max_answer), time.perf_counter()

        def begin() -> Prediction | None:
            queued = time.perf_counter() - asked
            clock.run()
            answer = following(clock)
            return answer and replace(answer, seconds={**answer.seconds, "queue": queued})

        try:
            return await clock.within(
                self._executors.model(begin, network=network, rank=work.rank, whose=work.call.user)
            )
        except TimeoutError:
            if not clock.expired:  # the model's own
                raise
            self.hung = True
            where = app_traceback.definition(type(work.task), self._app_dir)
            text = f"model {work.call.model!r}, {where}, did not answer within {self._max_answer:g} s"
            raise AppBroken(f"{text}: its process is being replaced") from None

    async def _reply(
        self, work: Work, prediction: Prediction, onto: Mask | None, more: Mapping[str, Any]
    ) -> InferReply:
        body, ext, seconds = await self._executors.io(encode_reply, work, prediction, onto)
        params = {**reply_params(work, prediction, seconds), **more}
        return InferReply(body=body, ext=ext, params=params, caches=work.hits)

    async def _staged(
        self, work: Work, prediction: Prediction, onto: Mask | None, stage: Stage, state: Mapping[str, Any]
    ) -> InferReply:
        """The reply with one mask of the answer to a turn."""
        reply = await self._reply(work, prediction, onto, {"interaction": state})
        return replace(reply, event=replace(stage, mask=state["mask"]).id)

    async def _instances(self, call: InferCall) -> Path:
        """The DICOM files of the image. Raises BadRequest if it is not a DICOM series."""
        if call.path is None:
            return await self._store.instances(call.key)
        if not await self._executors.io(call.path.is_dir):
            raise BadRequest("output=dicom_seg needs a DICOM series, and this image is not one: ask for output=image")
        return call.path

    async def _save(self, work: Work, prediction: Prediction, reply: InferReply, save: SaveAs) -> None:
        """Keep the prediction as a label of its image."""
        call, body, ext = work.call, reply.body, reply.ext
        if body is None:
            body, ext = await self._executors.io(encode_file, work, prediction)
        staged = await self._store.stage(ext)
        try:
            await self._executors.io(staged.write_bytes, body)
            await self._store.save_label(
                call.key,
                save.tag,
                staged,
                ext,
                info={"model": call.model, "params": dict(reply.params)},
                author=save.author,
                model_version=work.task.version,
            )
        finally:
            await self._executors.io(staged.unlink, True)

    async def _record(self, work: Work) -> None:
        """Log the prompts. Images of sessions and uploads have no log."""
        if work.call.path is None and not work.prompts.empty:
            payload = await self._executors.io(payload_of, work.prompts)
            await self._log.record(work.call, work.task.version, work.prompts, payload)

    def _prompts(self, call: InferCall, task: InferTask, image: OpenImage) -> Prompts:
        """The prompts in the call's params, and those in its label map: scribbles, or a mask to start from."""
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
        """Stop the threads and drop queued calls. Call it from any thread, once no other method is called any more."""
        self._serving.close()
        self._prefetcher.close()
        self._executors.close()


async def _with_prompts(work: Work, at: Interaction, parse: Parse) -> Work:
    """The work with the interaction's prompts in force."""
    prompts = await parse(at.params)
    if work.task.info.ordered:
        turns = [await parse({**params, "label": at.params.get("label")}) for params in at.turns]
        prompts = replace(prompts, turns=turns)
    return replace(work, call=replace(work.call, params=at.params), prompts=prompts)


def _annotator(call: InferCall) -> tuple[str, str, str] | None:
    """Identifies annotator and image; None for a caller without a client id."""
    return None if call.client_id is None else (call.user, call.client_id, call.key)
