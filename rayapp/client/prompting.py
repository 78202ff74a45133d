"""AsyncInteraction and Interaction: one image worked on prompt by prompt, with the mask as it stands.

The server answers what changed; the mask here is a new array each time, never changed in place. Calls of one
AsyncInteraction may run side by side: an answer that is overtaken by a later one is dropped.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypedDict, TypeVar, Unpack, cast

import aiohttp
import numpy as np
import numpy.typing as npt

from rayapp.client.results import MAX_LABELS
from rayapp.client.transport import Call, Transport, Unreachable, events, problem, read_json
from rayapp.protocol import PARAMS_HEADER, Route, StreamEvent
from rayapp.responses import InteractionState

T = TypeVar("T")
Mask = npt.NDArray[np.unsignedinteger[Any]]
"""(I, J, K), on the image's grid as its file lays it out."""
Points = Sequence[Sequence[int]]


class Said(TypedDict, total=False):
    """What a prompt may say beside clicks, in voxel indices [i, j, k].

    `curves` are closed, each on one slice; `extremes` are six outermost points by label name, or four on one slice;
    `marks` are strokes, (I, J, K), 1 background and 2 foreground; `start` is a mask to start from; `roi` is [i0, i1,
    j0, j1, k0, k1]; strokes and curves are drawn on the structure that `label` names; `reset` lets go of all prompts
    before.
    """

    curves: Sequence[Points]
    extremes: Mapping[str, Points]
    marks: Mask | None
    start: Mask | None
    roi: Sequence[int] | None
    label: str | None
    slice: int | None
    reset: bool


class AsyncInteraction:
    """An interaction on one server; `AsyncClient.open_interaction` makes it.

    `labels` is the mask after event number `step` of the log (None until there is one), `params` what came with it.
    """

    def __init__(self, transport: Transport, state: InteractionState, *, client_id: str | None) -> None:
        self.id, self.image, self.model = state["id"], state["image"], state["model"]
        self.labels: Mask | None = None
        self.step = 0
        self.params: dict[str, Any] = {}
        self._transport = transport
        self._client_id = client_id
        self._token = ""

    async def prompt(self, clicks: Mapping[str, Points] | None = None, **said: Unpack[Said]) -> Mask:
        """Add clicks by label name, closed curves, a box or more (see `Said`); the mask with them.

        Raises BadRequest for what does not fit the image or the model: it does not count then.
        """
        return await self._turn(Route.INTERACTION_PROMPTS, _prompt(clicks, said))

    def stream(self, clicks: Mapping[str, Points] | None = None, **said: Unpack[Said]) -> AsyncGenerator[Mask, None]:
        """As `prompt`, with every mask that the model comes to: a rough one soon, then what is better.

        Raises Conflict once a newer prompt of the interaction is there.
        """
        return self._stages(Route.INTERACTION_STREAM, _prompt(clicks, said))

    async def undo(self) -> Mask:
        """Take the last prompt back; the mask before it. Raises Conflict when there is none."""
        return await self._turn(Route.INTERACTION_UNDO, {})

    async def redo(self) -> Mask:
        """Bring back the prompt undone last. Raises Conflict when there is none."""
        return await self._turn(Route.INTERACTION_REDO, {})

    def stream_undo(self) -> AsyncGenerator[Mask, None]:
        """As `undo`, with every mask that the model comes to, as of `stream`."""
        return self._stages(Route.INTERACTION_UNDO_STREAM, {})

    def stream_redo(self) -> AsyncGenerator[Mask, None]:
        """As `redo`, with every mask that the model comes to, as of `stream`."""
        return self._stages(Route.INTERACTION_REDO_STREAM, {})

    async def state(self) -> InteractionState:
        """All that was said so far, also from elsewhere."""
        return cast(InteractionState, await self._transport.send(self._get(Route.INTERACTION), read_json))

    async def mask(self, *, step: int | None = None, model: str = "", version: str = "") -> Mask:
        """The mask now, or as of a step of the log, by another model or version: a replay. `labels` stays as it is."""
        query = {"step": "" if step is None else str(step), "model": model, "version": version}
        call = self._get(Route.INTERACTION_MASK, **{name: value for name, value in query.items() if value})
        _, body = await self._transport.send(call, _read)
        return _decoded(body, None)

    def _get(self, route: Route, **query: str) -> Call:
        return Call(method="GET", path=self._path(route), query=query)

    def _post(self, route: Route, said: Mapping[str, Any], *, known: bool) -> Call:
        """A turn of this program's, to be answered by what changes in the mask that it holds."""
        body = {**said, "request": secrets.token_hex(8), "onto": self._token, "client_id": self._client_id}
        return Call(method="POST", path=self._path(route), json=body, known=known)

    def _path(self, route: Route) -> str:
        return route.filled(interaction_id=self.id)

    async def _turn(self, route: Route, said: Mapping[str, Any]) -> Mask:
        held, call = self.labels, self._post(route, said, known=True)
        return self._taken(*await self._transport.send(call, _read), held)

    async def _stages(self, route: Route, said: Mapping[str, Any]) -> AsyncGenerator[Mask, None]:
        held, call = self.labels, self._post(route, said, known=False)
        async with self._transport.opened(call) as answer, aclosing(events(answer)) as told:
            async for kind, data in told:
                if kind == StreamEvent.PROBLEM:
                    raise problem(data["status"], data["detail"])
                if kind == StreamEvent.END:
                    return
                held = self._taken(data["params"], base64.b64decode(data["mask"]), held)
                yield held
        raise Unreachable("the connection broke off before the last mask")

    def _taken(self, params: dict[str, Any], changes: bytes, held: Mask | None) -> Mask:
        """The mask that an answer makes of the one that was held; kept, unless a later step's is here."""
        told = params["interaction"]
        labels = _decoded(changes, held if told["onto"] else None)
        if told["step"] >= self.step:
            self.labels, self.step, self.params, self._token = labels, told["step"], params, told["mask"]
        return labels


class Interaction:
    """`AsyncInteraction` with methods that wait."""

    def __init__(self, interaction: AsyncInteraction, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._interaction = interaction
        self._run = run
        self.id, self.image, self.model = interaction.id, interaction.image, interaction.model

    @property
    def labels(self) -> Mask | None:
        """The mask as it stands; None before the first prompt."""
        return self._interaction.labels

    @property
    def params(self) -> dict[str, Any]:
        """What came with it."""
        return self._interaction.params

    def prompt(self, clicks: Mapping[str, Points] | None = None, **said: Unpack[Said]) -> Mask:
        """As of `AsyncInteraction`."""
        return cast(Mask, self._run(self._interaction.prompt(clicks, **said)))

    def stream(self, clicks: Mapping[str, Points] | None = None, **said: Unpack[Said]) -> Iterator[Mask]:
        """As of `AsyncInteraction`."""
        return self._followed(self._interaction.stream(clicks, **said))

    def stream_undo(self) -> Iterator[Mask]:
        """As of `AsyncInteraction`."""
        return self._followed(self._interaction.stream_undo())

    def stream_redo(self) -> Iterator[Mask]:
        """As of `AsyncInteraction`."""
        return self._followed(self._interaction.stream_redo())

    def _followed(self, masks: AsyncGenerator[Mask, None]) -> Iterator[Mask]:
        async def following() -> Mask | None:
            return await anext(masks, None)

        try:
            while (found := self._run(following())) is not None:
                yield found
        finally:
            self._run(masks.aclose())

    def undo(self) -> Mask:
        """As of `AsyncInteraction`."""
        return cast(Mask, self._run(self._interaction.undo()))

    def redo(self) -> Mask:
        """As of `AsyncInteraction`."""
        return cast(Mask, self._run(self._interaction.redo()))

    def state(self) -> InteractionState:
        """As of `AsyncInteraction`."""
        return cast(InteractionState, self._run(self._interaction.state()))

    def mask(self, *, step: int | None = None, model: str = "", version: str = "") -> Mask:
        """As of `AsyncInteraction`."""
        return cast(Mask, self._run(self._interaction.mask(step=step, model=model, version=version)))


def _prompt(clicks: Mapping[str, Points] | None, said: Said) -> dict[str, Any]:
    """As the server reads it; masks are packed."""
    given: dict[str, Any] = {name: value for name, value in {"clicks": clicks, **said}.items() if value is not None}
    for name in ("marks", "start"):
        if name in given:
            from rayapp.imaging import mask_codec  # sending clicks needs none of the packages that masks need

            given[name] = mask_codec.to_text(given[name])
    return given


async def _read(response: aiohttp.ClientResponse) -> tuple[dict[str, Any], bytes]:
    return json.loads(response.headers[PARAMS_HEADER]), await response.read()


def _decoded(body: bytes, onto: Mask | None) -> Mask:
    from rayapp.imaging import mask_codec  # sending needs none of the packages that reading needs

    return cast(Mask, mask_codec.decode(body, onto, max_bytes=MAX_LABELS))
