"""AsyncInteraction: one image segmented prompt by prompt, with its current mask.

The server answers a prompt with the changed part of the mask. Each mask here is a new array and never changed in
place. Calls of one AsyncInteraction may run concurrently: an answer that a later one overtakes is dropped.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypedDict, Unpack, cast

import aiohttp
import numpy as np
import numpy.typing as npt

from rayapp.client.results import MAX_LABELS
from rayapp.client.transport import ATTEMPTS, Call, Transport, Unreachable, error_of, events, read_json
from rayapp.errors import Busy
from rayapp.protocol import PARAMS_HEADER, Route, StreamEvent
from rayapp.responses import InteractionState

Mask = npt.NDArray[np.unsignedinteger[Any]]
"""A label map, (I, J, K), on the image's voxel grid as its file stores it."""
Points = Sequence[Sequence[int]]
"""Voxel indices, each [i, j, k]."""
Curve = Sequence[Sequence[float]]
"""A closed polygon on one slice, in fractional voxel indices [i, j, k]; whole numbers are voxel centres."""
_REMOVABLE = ("start", "roi", "label", "slice")


class PromptFields(TypedDict, total=False):
    """Prompts other than clicks. Coordinates are voxel indices [i, j, k] of the image as its file stores it.

    `start`, `roi`, `label` and `slice` hold until a later prompt replaces them; None removes what an earlier prompt
    gave, and leaving the field out keeps it.

    Attributes:
        curves: Closed curves, each a list of points on one slice, between voxel centres too. Several on a slice follow
            the even-odd rule: an inner curve is the border of a hole.
        extremes: By label name the six extreme points of a structure, or four on one slice.
        marks: Scribbles, (I, J, K): 1 background, 2 foreground, 0 unmarked; None is the same as leaving them out.
        start: A mask, (I, J, K), to start from.
        roi: A box that the structure lies in, [i0, i1, j0, j1, k0, k1].
        label: Name of the structure that curves and scribbles are drawn on.
        slice: Index of the slice that a model of single slices shall segment.
        size: How many answers larger (below 0: smaller) than the likeliest is meant; see `larger`.
        reset: Drop all prompts before this one.
    """

    curves: Sequence[Curve]
    extremes: Mapping[str, Points]
    marks: Mask | None
    start: Mask | None
    roi: Sequence[int] | None
    label: str | None
    slice: int | None
    size: int
    reset: bool


class AsyncInteraction:
    """An interaction on one server, made by `AsyncClient.open_interaction`.

    Attributes:
        id: The interaction's id, which `AsyncClient.interaction` continues from any machine.
        image: Id of the image.
        model: Name of the model.
        labels: The current mask, (I, J, K); None before the first prompt.
        step: Number of the event in the click log that `labels` belongs to.
        params: The params that came with `labels`.
    """

    def __init__(self, transport: Transport, state: InteractionState, *, client_id: str | None) -> None:
        self.id, self.image, self.model = state["id"], state["image"], state["model"]
        self.labels: Mask | None = None
        self.step = 0
        self.params: dict[str, Any] = {}
        self._transport = transport
        self._client_id = client_id
        self._mask_token = ""

    async def prompt(self, clicks: Mapping[str, Points] | None = None, **fields: Unpack[PromptFields]) -> Mask:
        """Add a prompt.

        Args:
            clicks: Clicks by label name, each voxel indices [i, j, k].
            **fields: Curves, scribbles, a box and more: see `PromptFields`.

        Returns:
            The mask that the model makes of all prompts so far.

        Raises:
            BadRequest: If the prompt does not suit the image or the model; it is not recorded then.
        """
        return await self._turn(Route.INTERACTION_PROMPTS, _body(clicks, fields))

    def stream(
        self, clicks: Mapping[str, Points] | None = None, **fields: Unpack[PromptFields]
    ) -> AsyncGenerator[Mask, None]:
        """Add a prompt and receive each mask of the answer: a coarse one early, then the refined ones. Reconnects when
        the connection breaks, and goes on behind the last mask that it has received.

        Args:
            clicks: Clicks by label name, each voxel indices [i, j, k].
            **fields: Curves, scribbles, a box and more: see `PromptFields`.

        Raises:
            BadRequest: If the prompt does not suit the image or the model; it is not recorded then.
            Conflict: When a newer prompt of the interaction supersedes this one.
        """
        return self._stages(Route.INTERACTION_STREAM, _body(clicks, fields))

    async def larger(self) -> Mask:
        """Take the next larger answer to the prompts so far, such as an organ in place of its part.

        It is the same answer if there is no larger one. It can be undone.
        """
        return await self.prompt(size=self.params.get("size", 0) + 1)

    async def smaller(self) -> Mask:
        """Take the next smaller answer to the prompts so far, as `larger` does."""
        return await self.prompt(size=self.params.get("size", 0) - 1)

    async def undo(self) -> Mask:
        """Undo the last prompt.

        Returns:
            The mask of the prompts before it.

        Raises:
            Conflict: If there is no prompt to undo.
        """
        return await self._turn(Route.INTERACTION_UNDO, {})

    async def redo(self) -> Mask:
        """Redo the prompt that was undone last.

        Returns:
            The mask with that prompt.

        Raises:
            Conflict: If there is no prompt to redo.
        """
        return await self._turn(Route.INTERACTION_REDO, {})

    def stream_undo(self) -> AsyncGenerator[Mask, None]:
        """Undo the last prompt and receive each mask of the answer, as `stream` does."""
        return self._stages(Route.INTERACTION_UNDO_STREAM, {})

    def stream_redo(self) -> AsyncGenerator[Mask, None]:
        """Redo the prompt that was undone last and receive each mask of the answer, as `stream` does."""
        return self._stages(Route.INTERACTION_REDO_STREAM, {})

    async def state(self) -> InteractionState:
        """The prompts in force and the click log, including prompts that were sent from elsewhere."""
        return cast(InteractionState, await self._transport.send(self._get(Route.INTERACTION), read_json))

    async def mask(self, *, step: int | None = None, model: str = "", version: str = "") -> Mask:
        """The current mask, or a replay of the click log. `labels` stays unchanged.

        Args:
            step: Number of the event in the click log up to which prompts count; all by default.
            model: Another model to replay the prompts with.
            version: Another version of the model to replay the prompts with.
        """
        query = {"step": "" if step is None else str(step), "model": model, "version": version}
        call = self._get(Route.INTERACTION_MASK, **{name: value for name, value in query.items() if value})
        _, body = await self._transport.send(call, _read_mask)
        return _decode(body, None)

    def _get(self, route: Route, **query: str) -> Call:
        return Call(method="GET", path=self._path(route), query=query)

    def _post(self, route: Route, fields: Mapping[str, Any]) -> Call:
        """A turn with a request id; `onto` names the mask that the answer shall be a change of."""
        body = {**fields, "request": secrets.token_hex(8), "onto": self._mask_token, "client_id": self._client_id}
        return Call(method="POST", path=self._path(route), json=body, deduplicated=True)

    def _path(self, route: Route) -> str:
        return route.filled(interaction_id=self.id)

    async def _turn(self, route: Route, fields: Mapping[str, Any]) -> Mask:
        before, call = self.labels, self._post(route, fields)
        return self._update(*await self._transport.send(call, _read_mask), before)

    async def _stages(self, route: Route, fields: Mapping[str, Any]) -> AsyncGenerator[Mask, None]:
        mask, call = self.labels, self._post(route, fields)
        failures = 0
        while True:
            try:
                async with self._transport.opened(call) as response, aclosing(events(response)) as stages:
                    async for kind, data, event_id in stages:
                        if kind == StreamEvent.PROBLEM:
                            raise error_of(data["status"], data["detail"])
                        if kind == StreamEvent.END:
                            return
                        mask = self._update(data["params"], base64.b64decode(data["mask"]), mask)
                        failures, call = 0, replace(call, last_event=event_id)
                        yield mask
                raise Unreachable("the connection broke before the last mask: the prompt is recorded, get it by mask()")
            except (Unreachable, Busy):
                failures += 1
                if failures == ATTEMPTS:
                    raise
            await asyncio.sleep(failures)

    def _update(self, params: dict[str, Any], changes: bytes, before: Mask | None) -> Mask:
        """Apply an answer's changes to the mask before it; becomes `labels` unless a later step's mask is there."""
        interaction = params["interaction"]
        labels = _decode(changes, before if interaction["onto"] else None)
        if interaction["step"] >= self.step:
            self.labels, self.step, self.params = labels, interaction["step"], params
            self._mask_token = interaction["mask"]
        return labels


def _body(clicks: Mapping[str, Points] | None, fields: PromptFields) -> dict[str, Any]:
    """The request's JSON, masks packed and in base64; None is sent for what a prompt can remove."""
    body: dict[str, Any] = {
        name: value for name, value in {"clicks": clicks, **fields}.items() if value is not None or name in _REMOVABLE
    }
    for name in ("marks", "start"):
        if body.get(name) is not None:
            from rayapp.imaging import mask_codec  # sending clicks needs none of the packages that masks need

            body[name] = mask_codec.to_text(body[name])
    return body


async def _read_mask(response: aiohttp.ClientResponse) -> tuple[dict[str, Any], bytes]:
    return json.loads(response.headers[PARAMS_HEADER]), await response.read()


def _decode(body: bytes, onto: Mask | None) -> Mask:
    from rayapp.imaging import mask_codec  # sending needs none of the packages that reading needs

    return cast(Mask, mask_codec.decode(body, onto, max_bytes=MAX_LABELS))
