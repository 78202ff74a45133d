"""The click log as seen by a replica: prompts are logged durably, and interactions are derived from the log.

Interactions and the last masks are cached, within bounds; every replica derives the same from the log. All methods
belong to one event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rayapp.datastore.interfaces import ClickEvent, Info
from rayapp.errors import RayappError
from rayapp.imaging import mask_codec
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.infer_task import Prompts, TaskInfo
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND, structure_names
from rayapp.inference.prompts.unknown_label import unknown_label
from rayapp.serving.cache import ByteCache
from rayapp.serving.interaction import WITHDRAW, Interaction, opened_at
from rayapp.serving.messages import InferCall, Turn

Mask = npt.NDArray[np.uint8]

INTERACTIONS = 1000
"""Cached interactions."""
MASK_BYTES = 256 << 20
"""Bytes of cached masks, relative to which the next answer is sent as changes."""


class Log(Protocol):
    """The part of the datastore that the click log needs, asynchronously."""

    def append_events(self, events: Sequence[ClickEvent]) -> Awaitable[list[int]]:
        """See `rayapp.datastore.interfaces.ClickStore`."""

    def append_turn(self, event: ClickEvent, *, opened: int, after: int) -> Awaitable[list[ClickEvent]]:
        """See `rayapp.datastore.interfaces.ClickStore`."""

    def events(self, image_id: str, *, user: str | None = None, after: int = 0) -> Awaitable[list[ClickEvent]]:
        """See `rayapp.datastore.interfaces.ClickStore`."""


Parse = Callable[[Mapping[str, Any]], Awaitable[Prompts]]
"""Parses a request's `params`. Raises BadRequest."""


class ClickLog:
    """The click log as one replica writes and reads it.

    A turn costs one call: the entry is checked against the interaction as this replica knows it, and appended if the
    log has nothing newer. Otherwise the call returns the newer entries, and the turn is tried again on top of them.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._folds: OrderedDict[str, Interaction] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}
        self._answered: OrderedDict[str, int] = OrderedDict()
        self._masks: ByteCache[Mask] = ByteCache(MASK_BYTES)

    async def record(self, call: InferCall, version: str, prompts: Prompts, payload: Mapping[str, Any]) -> None:
        """Append the prompts of a single call outside any interaction.

        Args:
            call: the call, with image, model and user.
            version: version of the model that answers.
            prompts: the call's prompts.
            payload: the same prompts as the log stores them; see `payload_of`.
        """
        event = ClickEvent(
            image_id=call.key,
            kind="click" if prompts.marks is None else "scribble",
            payload=dict(payload),
            model=call.model,
            model_version=version,
            user=call.user,
            client_id=call.client_id,
            ts=time.time(),
        )
        await self._log.append_events([event])

    async def advance(self, turn: Turn, info: TaskInfo, version: str, parse: Parse) -> tuple[Interaction, Prompts]:
        """Append a turn's entry to the log, unless it is there already.

        Turns of one interaction are appended one after another, each on top of the previous ones.

        Args:
            turn: the turn; nothing is appended if it has no event.
            info: the model that answers.
            version: version of the model that answers; logged with the entry.
            parse: checks the prompts in force against the image.

        Returns:
            The interaction as of the turn, and all prompts in force.

        Raises:
            BadRequest: a prompt does not fit the image, or names a structure unknown to the model.
            Conflict: there is nothing to undo, or to redo.
            NotFound: the image or the interaction no longer exists.
        """
        event = turn.event
        if event is None:
            now = await self._read(turn.interaction, turn.until)
            return now, await parse(now.params)
        event = dataclasses.replace(event, model_version=version)
        async with self._turn(turn.interaction.id):
            now = self._folds.get(turn.interaction.id, turn.interaction)
            if event.payload["request"] in now.requests:
                now = await self._read(turn.interaction)
            while event.payload["request"] not in now.requests:
                try:
                    now.check(event.kind)
                    _check_labels(now, event, info)
                    prompts = await parse(now.after(event).params)
                except RayappError:  # which may be so only because another replica has appended meanwhile
                    newest = await self._read(turn.interaction)
                    if newest.step == now.step:
                        raise
                    now = newest
                    continue
                now, appended = await self._append(event, now)
                if appended:
                    return now, prompts
            return now, await parse(now.params)

    def answer(self, at: Interaction) -> None:
        """Record that the model answered to all prompts in force."""
        self._answered[at.id] = at.step
        self._answered.move_to_end(at.id)
        if len(self._answered) > INTERACTIONS:
            self._answered.popitem(last=False)

    def unanswered(self, at: Interaction) -> list[Info]:
        """The prompts in force since the model's last answer.

        Returns:
            The prompts; None if this replica does not know when that answer was, so that no prompt is withdrawn whose
            effect an annotator has seen.
        """
        if len(at.done) <= 1:  # it has been here from the beginning
            self._answered.setdefault(at.id, 0)
        answered = self._answered.get(at.id, at.step)
        return [prompt for prompt in at.done if prompt["step"] > answered]

    async def withdraw(self, turn: Turn, step: int) -> None:
        """Append that the prompt of entry number `step` is withdrawn, since the model rejected it."""
        if turn.event is None:
            return
        event = turn.interaction.event(
            WITHDRAW,
            {"withdrawn": step},
            request=secrets.token_hex(8),
            client_id=turn.event.client_id,
            ts=time.time(),
        )
        async with self._turn(turn.interaction.id):
            now, appended = self._folds.get(turn.interaction.id, turn.interaction), False
            while not appended:
                now, appended = await self._append(event, now)

    async def _append(self, event: ClickEvent, now: Interaction) -> tuple[Interaction, bool]:
        """The interaction including the log's entries after `now`, and whether `event` was appended as the only new
        one.
        """
        newer = await self._log.append_turn(event, opened=opened_at(now.id), after=now.step)
        for each in newer:
            now = now.after(each)
        self._remember(now)
        return now, len(newer) == 1 and newer[0].payload["request"] == event.payload["request"]

    def _turn(self, interaction_id: str) -> asyncio.Lock:
        if len(self._turns) >= INTERACTIONS:
            self._turns = {name: lock for name, lock in self._turns.items() if lock.locked()}
        return self._turns.setdefault(interaction_id, asyncio.Lock())

    async def _read(self, opened: Interaction, until: int | None = None) -> Interaction:
        """The interaction as of entry `until` (None: the newest), continued from the cached state."""
        now = self._folds.get(opened.id, opened)
        if until is not None and now.step > until:
            now = opened
        for event in now.own(await self._log.events(opened.image_id, user=opened.user, after=now.step)):
            if until is None or event.seq <= until:
                now = now.after(event)
        if until is None:
            self._remember(now)
        return now

    def _remember(self, now: Interaction) -> None:
        kept = self._folds.get(now.id)
        self._folds[now.id] = now if kept is None or kept.step < now.step else kept
        self._folds.move_to_end(now.id)
        if len(self._folds) > INTERACTIONS:
            self._folds.popitem(last=False)

    def described(self, turn: Turn, at: Interaction, labels: Mask, onto: str) -> dict[str, Any]:
        """The reply's `interaction`. The mask is cached under a new token, unless it is that of a past step.

        Args:
            turn: the turn that is answered.
            at: the interaction as of that turn.
            labels: the mask, shape (I, J, K).
            onto: token of the mask that the reply's changes apply to, "" for zeros.
        """
        return {
            "step": at.step,
            "mask": "" if turn.until is not None else self._keep(labels),
            "onto": onto,
            "can_undo": bool(at.done),
            "can_redo": bool(at.undone),
        }

    def mask(self, token: str) -> Mask | None:
        """The mask that was sent with this token; None if it is no longer cached."""
        return self._masks.kept(token)

    def _keep(self, labels: Mask) -> str:
        token = secrets.token_hex(8)
        self._masks.put(token, labels)
        return token


def _check_labels(now: Interaction, event: ClickEvent, info: TaskInfo) -> None:
    """Raise BadRequest for clicks on a structure that the model does not know, which would have no effect.

    A model without labels of its own knows the structure that `label` names.
    """
    label = event.payload.get("label", now.params.get("label"))
    known = dict.fromkeys((*structure_names(info, label), FOREGROUND, BACKGROUND))
    for name in (*event.payload.get("clicks", {}), *event.payload.get("extremes", {})):
        if name not in known:
            raise unknown_label(name, known)


def payload_of(prompts: Prompts) -> dict[str, Any]:
    """The prompts as the click log stores them; masks are packed by `mask_codec`, in base64."""
    drawings = {
        name: {"marks": _packed(drawing.marks), "curves": [list(points) for points in drawing.curves]}
        for name, drawing in prompts.drawings.items()
    }
    others = {
        "marks": _packed(prompts.marks),
        "curves": [list(points) for points in prompts.curves],
        "drawings": drawings,
        "extremes": {name: list(points) for name, points in prompts.extremes.items()},
        "start": _packed(prompts.start),
        "label": prompts.label,
        "slice": prompts.slice,
        "size": dict(prompts.sizes),
    }
    clicks = {name: list(points) for name, points in prompts.clicks.items()}
    return {
        "clicks": clicks,
        "roi": prompts.roi,
        **{name: value for name, value in others.items() if value not in (None, [], {})},
    }


def _packed(mask: Mask | SparseLabels | None) -> str | None:
    return None if mask is None else mask_codec.to_text(mask)
