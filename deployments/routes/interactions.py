"""`/interactions`: sessions of prompts that live in the click log. MONAI Label has none.

An annotator opens an interaction on an image, prompts, undoes and redoes, and may continue on another machine, since
everything is in the log. Masks are sent as changes (`rayapp.imaging.mask_codec`). The params in the header have under
`interaction` the `step` of the log that the mask is of, its token `mask`, and the token `onto` of the mask that the
changes apply to ("" for zeros).
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.access import AsAnnotator, Described, Opened, Service
from deployments.audit import about
from deployments.interactions import OpenedInteractions
from deployments.problems import problems
from deployments.services import Services
from deployments.streams import EVENT_STREAM, LastEvent, event_stream, server_sent_event, unless_gone
from rayapp.datastore.interfaces import ClickEvent, Info
from rayapp.errors import BadRequest, NotAllowed, RayappError
from rayapp.protocol import MASK_MEDIA_TYPE, PARAMS_HEADER, Output, Role, Route, StreamEvent, checked_name
from rayapp.responses import InteractionEvent, InteractionState, OpenedInteraction
from rayapp.serving.interaction import (
    OPEN,
    PROMPT,
    REDO,
    UNDO,
    Interaction,
    opening_event,
    prompt_of,
)
from rayapp.serving.messages import HandedOut, InferCall, InferReply, Turn
from rayapp.users import User

router = APIRouter(tags=["interactions"], responses=problems(400, 404, 409, 413, 422, 503))

Point = tuple[int, int, int]
CurvePoint = tuple[float, float, float]
_MASK: dict[int | str, dict[str, Any]] = {
    200: {"description": "The changes as a packed mask; params in a header.", "content": {MASK_MEDIA_TYPE: {}}}
}


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events `mask`, `problem` and `end`.", "content": {EVENT_STREAM: {}}}
}


class Opening(BaseModel):
    """The image to work on, and the model."""

    image: str
    model: str
    client_id: str | None = Field(None, max_length=200)


class Step(BaseModel):
    """`request` is an id chosen by the client; sent again, it counts once. `onto` is the token of the mask it holds."""

    model_config = ConfigDict(extra="forbid")

    request: str = Field(default_factory=lambda: secrets.token_hex(8), min_length=1, max_length=64)
    onto: str = Field("", max_length=64)
    client_id: str | None = Field(None, max_length=200)


class Prompt(Step):
    """One more prompt. Points are voxel indices [i, j, k]; those of closed curves may be fractional, all on one slice.

    `roi` is [i0, i1, j0, j1, k0, k1], null to remove it. `extremes` are the six outermost points of a structure by its
    name, or four on one slice. `marks` (scribbles: 1 background, 2 foreground) and `start` (a mask to start from, null
    to remove it) are packed masks in base64. Scribbles and curves belong to the structure `label`. `size` asks for a
    larger (1, 2, …) or smaller (-1, -2, …) answer than the likeliest to the prompts so far; the params `larger` and
    `smaller` say how many there are. `reset` drops all earlier prompts.
    """

    clicks: dict[str, list[Point]] = {}
    curves: list[list[CurvePoint]] = []
    extremes: dict[str, list[Point]] = {}
    marks: str | None = None
    start: str | None = None
    roi: list[int] | None = None
    label: str | None = Field(None, max_length=200)
    slice: int | None = None
    size: int = Field(0, ge=-99, le=99)
    reset: bool = False


@router.post(Route.INTERACTIONS)
async def open_one(
    request: Request, opening: Opening, services: Service, opened: Opened, described: Described, user: AsAnnotator
) -> OpenedInteraction:
    """Open an interaction. The user can continue it on any machine by its id."""
    model = await described.known("models", "model", opening.model)
    image = await services.datastore.image(checked_name(opening.image, "image"))
    about(request, image=image.id)
    event = opening_event(image_id=image.id, model=model, user=user.name, client_id=opening.client_id, ts=time.time())
    (seq,) = await services.datastore.append_events([event])
    services.inference.prefetch(HandedOut(key=image.id, model=model, user=user.name, client_id=opening.client_id))
    interaction = Interaction.of(replace(event, seq=seq))
    opened.add(interaction)
    return OpenedInteraction(id=interaction.id)


@router.get(Route.INTERACTIONS)
async def of_image(
    services: Service, caller: AsAnnotator, image: Annotated[str, Query()], user: Annotated[str, Query()] = ""
) -> list[InteractionState]:
    """Interactions on an image, oldest first: the caller's own; reviewers may ask for those of another `user`."""
    if user and user != caller.name and not caller.role.reaches(Role.REVIEWER):
        raise _not_yours()
    record = await services.datastore.image(checked_name(image, "image"))
    events = await services.datastore.events(record.id, user=user or caller.name)
    return [_state(Interaction.of(event), events) for event in events if event.kind == OPEN]


@router.get(Route.INTERACTION)
async def state(
    interaction_id: str, request: Request, services: Service, opened: Opened, user: AsAnnotator
) -> InteractionState:
    """The interaction's prompts and its log."""
    interaction = _checked(await opened.find(interaction_id), user, reading=True)
    about(request, image=interaction.image_id)
    return _state(
        interaction,
        await services.datastore.events(interaction.image_id, user=interaction.user, after=interaction.step),
    )


@router.get(Route.INTERACTION_MASK, response_class=Response, responses=_MASK)
async def mask(
    interaction_id: str,
    request: Request,
    services: Service,
    opened: Opened,
    user: AsAnnotator,
    step: Annotated[int | None, Query(ge=0)] = None,
    model: Annotated[str, Query()] = "",
    version: Annotated[str, Query()] = "",
) -> Response:
    """The mask now or at a step of the log, by the interaction's model or another `model`, in the served version or
    in `version`."""
    interaction = _checked(await opened.find(interaction_id), user, reading=True)
    about(request, image=interaction.image_id)
    call = InferCall(
        model=checked_name(model or interaction.model, "model"),
        key=interaction.image_id,
        output=Output.BOX,
        user=user.name,
        version=checked_name(version, "version") if version else None,
        turn=Turn(interaction=interaction, until=step),
    )
    return await _answer(request, services, call)


def _given(body: Prompt) -> Info:
    """The prompt's fields that were sent. Raises BadRequest if there are none."""
    given: Info = body.model_dump(mode="json", exclude_unset=True, exclude={"request", "onto", "client_id"})
    if not given:
        raise BadRequest("a prompt needs clicks, curves, extremes, marks, start, roi, label, slice, size or reset")
    return given


@router.post(Route.INTERACTION_PROMPTS, response_class=Response, responses=_MASK)
async def prompt(
    interaction_id: str, body: Prompt, request: Request, services: Service, opened: Opened, user: AsAnnotator
) -> Response:
    """Add a prompt and get the mask. The prompt is logged durably before the network runs."""
    return await _answer(
        request, services, await _turn(request, interaction_id, PROMPT, body, _given(body), opened, user)
    )


@router.post(Route.INTERACTION_STREAM, response_class=Response, responses=_EVENTS)
async def stream(
    interaction_id: str,
    body: Prompt,
    request: Request,
    services: Service,
    opened: Opened,
    user: AsAnnotator,
    last_event: LastEvent = "",
) -> Response:
    """Add a prompt and get its masks as server-sent events: a first one soon, then every better one.

    `mask` events have `params` and, in base64, the packed changes to the mask before. A `problem` event has `status`
    and `detail` of an error (409: a newer prompt of the interaction arrived). `end` is the last event. After a broken
    connection, the same body with the last id as `Last-Event-ID` gets the events behind it, whatever `onto` says.
    """
    call = await _turn(request, interaction_id, PROMPT, body, _given(body), opened, user, last_event)
    return await _streamed(request, services, call)


async def _streamed(request: Request, services: Services, call: InferCall) -> Response:
    """Stream the stages. An error before the first one is an ordinary error response."""
    replies = services.inference.stream(call)
    try:
        first = await unless_gone(request, anext(replies, None))
    except BaseException:
        await replies.aclose()
        raise
    return event_stream(_events(first, replies))


async def _events(first: InferReply | None, replies: AsyncGenerator[InferReply, None]) -> AsyncIterator[bytes]:
    async with aclosing(replies):
        if first is not None:
            yield _stage(first)
        try:
            async for reply in replies:
                yield _stage(reply)
        except RayappError as error:
            yield server_sent_event(StreamEvent.PROBLEM, {"status": error.status, "detail": error.detail})
        yield server_sent_event(StreamEvent.END, {})


def _stage(reply: InferReply) -> bytes:
    data = {"params": dict(reply.params), "mask": base64.b64encode(reply.body or b"").decode()}
    return server_sent_event(StreamEvent.MASK, data, id=reply.event)


@router.post(Route.INTERACTION_UNDO, response_class=Response, responses=_MASK)
async def undo(
    interaction_id: str, asked: Step, request: Request, services: Service, opened: Opened, user: AsAnnotator
) -> Response:
    """Undo the last prompt and get the mask. 409 if there is none."""
    return await _answer(request, services, await _turn(request, interaction_id, UNDO, asked, {}, opened, user))


@router.post(Route.INTERACTION_UNDO_STREAM, response_class=Response, responses=_EVENTS)
async def undo_stream(
    interaction_id: str,
    asked: Step,
    request: Request,
    services: Service,
    opened: Opened,
    user: AsAnnotator,
    last_event: LastEvent = "",
) -> Response:
    """Undo the last prompt and get the masks as events, like `stream`. 409 if there is none."""
    call = await _turn(request, interaction_id, UNDO, asked, {}, opened, user, last_event)
    return await _streamed(request, services, call)


@router.post(Route.INTERACTION_REDO, response_class=Response, responses=_MASK)
async def redo(
    interaction_id: str, asked: Step, request: Request, services: Service, opened: Opened, user: AsAnnotator
) -> Response:
    """Redo the prompt that was undone last and get the mask. 409 if there is none."""
    return await _answer(request, services, await _turn(request, interaction_id, REDO, asked, {}, opened, user))


@router.post(Route.INTERACTION_REDO_STREAM, response_class=Response, responses=_EVENTS)
async def redo_stream(
    interaction_id: str,
    asked: Step,
    request: Request,
    services: Service,
    opened: Opened,
    user: AsAnnotator,
    last_event: LastEvent = "",
) -> Response:
    """Redo the prompt that was undone last and get the masks as events, like `stream`. 409 if there is none."""
    call = await _turn(request, interaction_id, REDO, asked, {}, opened, user, last_event)
    return await _streamed(request, services, call)


async def _turn(
    request: Request,
    interaction_id: str,
    kind: str,
    asked: Step,
    given: Info,
    opened: OpenedInteractions,
    user: User,
    last_event: str = "",
) -> InferCall:
    interaction = _checked(await opened.known(interaction_id), user, reading=False)
    about(request, image=interaction.image_id)
    event = interaction.event(kind, given, request=asked.request, client_id=asked.client_id, ts=time.time())
    return InferCall(
        model=interaction.model,
        key=interaction.image_id,
        output=Output.BOX,
        user=user.name,
        client_id=interaction.id,  # a newer turn of the same interaction replaces one that is not through the network
        turn=Turn(interaction=interaction, event=event, onto=asked.onto, last_event=last_event),
    )


async def _answer(request: Request, services: Services, call: InferCall) -> Response:
    reply = await unless_gone(request, services.inference.infer(call))
    headers = {PARAMS_HEADER: json.dumps(dict(reply.params))}
    return Response(reply.body, media_type=MASK_MEDIA_TYPE, headers=headers)


def _checked(interaction: Interaction, user: User, *, reading: bool) -> Interaction:
    """The interaction, if it is the user's own; reviewers may read those of others. Raises NotAllowed."""
    if interaction.user != user.name and not (reading and user.role.reaches(Role.REVIEWER)):
        raise _not_yours()
    return interaction


def _state(opened: Interaction, events: list[ClickEvent]) -> InteractionState:
    now, own = opened, opened.own(event for event in events if event.seq > opened.step)
    for event in own:
        now = now.after(event)
    history = [
        InteractionEvent(
            step=event.seq,
            kind=event.kind,
            prompt=prompt_of(event),
            model_version=event.model_version,
            ts=event.ts,
        )
        for event in own
    ]
    return InteractionState(
        id=now.id,
        image=now.image_id,
        model=now.model,
        user=now.user,
        step=now.step,
        prompts=list(now.done),
        can_undo=bool(now.done),
        can_redo=bool(now.undone),
        events=history,
    )


def _not_yours() -> NotAllowed:
    return NotAllowed("the interaction belongs to another user: open your own")
