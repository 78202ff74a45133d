"""ClickLog: what annotators point at, durably logged from a replica, and the interactions folded from it.

The folds and the masks answered last are caches, bounded; another replica reads the log and comes to the same.
All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rayapp.datastore.interfaces import ClickEvent
from rayapp.errors import BadRequest
from rayapp.imaging import mask_codec
from rayapp.inference.infer_task import Prompts, TaskInfo
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND, parse_prompts, structure_names
from rayapp.serving.cache import ByteCache
from rayapp.serving.interaction import PROMPT, WITHDRAW, Interaction
from rayapp.serving.messages import InferCall, Turn

Mask = npt.NDArray[np.uint8]

INTERACTIONS = 1000
"""Interactions whose fold is remembered."""
MASK_BYTES = 256 << 20
"""Of masks answered last, so that the next answer is but what changed."""


class Log(Protocol):
    """What it needs of the datastore, asynchronously."""

    def append_events(self, events: list[ClickEvent]) -> Awaitable[list[int]]:
        """Durably append to the click log."""

    def events(self, image_id: str, *, user: str, after: int) -> Awaitable[list[ClickEvent]]:
        """One user's log of an image in order, from behind sequence number `after`."""


class ClickLog:
    """The click log, from one replica."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._folds: OrderedDict[str, Interaction] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}
        self._masks: ByteCache[Mask] = ByteCache(MASK_BYTES)

    async def record(self, call: InferCall, version: str, prompts: Prompts, payload: Mapping[str, Any]) -> None:
        """Append all the prompts of a call that stands for itself."""
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

    async def advance(self, turn: Turn, info: TaskInfo, version: str, shape: tuple[int, int, int]) -> Interaction:
        """Append the turn's event, unless it is there; the interaction with all that was logged until then.

        Turns of one interaction go one after another, each on top of those before.

        Raises:
            BadRequest: a prompt that does not fit the image, or names a structure that the model does not know.
            Conflict: nothing to undo, or to redo.
        """
        event = turn.event
        if event is None:
            return await self._read(turn.interaction, turn.until)
        async with self._turn(turn.interaction.id):
            now = await self._read(turn.interaction)
            if event.payload["request"] in now.requests:
                return now
            now.check(event.kind)
            _check_labels(now, event, info)
            await asyncio.to_thread(parse_prompts, now.after(event).params, info, shape)
            (seq,) = await self._log.append_events([dataclasses.replace(event, model_version=version)])
            return await self._read(turn.interaction, seq)

    async def withdraw(self, turn: Turn, step: int) -> None:
        """Take back the prompt that the model could not work with."""
        if turn.event is not None and turn.event.kind == PROMPT:
            said, request = {"withdrawn": step}, secrets.token_hex(8)
            event = turn.interaction.event(
                WITHDRAW, said, request=request, client_id=turn.event.client_id, ts=time.time()
            )
            await self._log.append_events([event])

    def _turn(self, interaction_id: str) -> asyncio.Lock:
        if len(self._turns) >= INTERACTIONS:
            self._turns = {name: lock for name, lock in self._turns.items() if lock.locked()}
        return self._turns.setdefault(interaction_id, asyncio.Lock())

    async def _read(self, opened: Interaction, until: int | None = None) -> Interaction:
        """The fold up to event `until`, from where it was left."""
        found = self._folds.get(opened.id)
        if found is None or (until is not None and found.step > until):
            found = opened
        for event in found.own(await self._log.events(opened.image_id, user=opened.user, after=found.step)):
            if until is None or event.seq <= until:
                found = found.after(event)
        self._folds[opened.id] = found
        self._folds.move_to_end(opened.id)
        if len(self._folds) > INTERACTIONS:
            self._folds.popitem(last=False)
        return found

    def told(self, turn: Turn, at: Interaction, labels: Mask, onto: str) -> dict[str, Any]:
        """What the reply says of the interaction. The mask is kept, unless it is of the past."""
        return {
            "step": at.step,
            "mask": "" if turn.until is not None else self._keep(labels),
            "onto": onto,
            "can_undo": bool(at.done),
            "can_redo": bool(at.undone),
        }

    def mask(self, token: str) -> Mask | None:
        """The mask that was answered under this token, if it is still here."""
        return self._masks.kept(token)

    def _keep(self, labels: Mask) -> str:
        token = secrets.token_hex(8)
        self._masks.put(token, labels)
        return token


def _check_labels(now: Interaction, event: ClickEvent, info: TaskInfo) -> None:
    """A click on what the model does not know would count for nothing. Models of whatever is pointed at know what
    `label` names."""
    label = event.payload.get("label", now.params.get("label"))
    known = dict.fromkeys((*structure_names(info, label), FOREGROUND, BACKGROUND))
    for name in (*event.payload.get("clicks", {}), *event.payload.get("extremes", {})):
        if name not in known:
            raise BadRequest(f"the model knows no {name[:60]!r}; it knows: {', '.join(known)}")


def payload_of(prompts: Prompts) -> dict[str, Any]:
    """What the click log keeps; masks as `mask_codec` packs them, in base64."""
    drawings = {
        name: {"marks": _packed(drawing.marks), "curves": [list(points) for points in drawing.curves]}
        for name, drawing in prompts.drawings.items()
    }
    said = {
        "marks": _packed(prompts.marks),
        "curves": [list(points) for points in prompts.curves],
        "drawings": drawings,
        "extremes": {name: list(points) for name, points in prompts.extremes.items()},
        "start": _packed(prompts.start),
        "label": prompts.label,
        "slice": prompts.slice,
    }
    clicks = {name: list(points) for name, points in prompts.clicks.items()}
    return {
        "clicks": clicks,
        "roi": prompts.roi,
        **{name: value for name, value in said.items() if value not in (None, [], {})},
    }


def _packed(mask: Mask | None) -> str | None:
    return None if mask is None else mask_codec.to_text(mask)
