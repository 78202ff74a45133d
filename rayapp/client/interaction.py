"""AsyncInteraction and Interaction: one image worked on prompt by prompt, with the mask as it stands.

The server answers what changed; the mask here is a new array each time, never changed in place. Calls of one
AsyncInteraction may run side by side: an answer that is overtaken by a later one is dropped.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

import aiohttp
import numpy as np
import numpy.typing as npt

from rayapp.client.results import MAX_LABELS, InteractionState
from rayapp.client.transport import Call, Transport, read_json
from rayapp.protocol import PARAMS_HEADER
from rayapp.protocol import Path as Route

T = TypeVar("T")
Mask = npt.NDArray[np.unsignedinteger[Any]]
"""(I, J, K), on the image's grid as its file lays it out."""
Points = Sequence[Sequence[int]]


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

    async def prompt(
        self,
        clicks: Mapping[str, Points] | None = None,
        *,
        curves: Sequence[Points] = (),
        roi: Sequence[int] | None = None,
        label: str | None = None,
        slice: int | None = None,
        reset: bool = False,
    ) -> Mask:
        """Add clicks by label name, closed curves, a box or more; the mask with them.

        Raises BadRequest for what does not fit the image or the model: it does not count then.
        """
        given: dict[str, Any] = {"clicks": clicks, "curves": curves or None, "roi": roi, "label": label, "slice": slice}
        said = {name: value for name, value in given.items() if value is not None}
        if reset:
            said["reset"] = True
        return await self._turn(Route.INTERACTION_PROMPTS, said)

    async def undo(self) -> Mask:
        """Take the last prompt back; the mask before it. Raises Conflict when there is none."""
        return await self._turn(Route.INTERACTION_UNDO, {})

    async def redo(self) -> Mask:
        """Bring back the prompt undone last. Raises Conflict when there is none."""
        return await self._turn(Route.INTERACTION_REDO, {})

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

    def _path(self, route: Route) -> str:
        return route.format(interaction_id=quote(self.id, safe=""))

    async def _turn(self, route: Route, said: Mapping[str, Any]) -> Mask:
        held, token = self.labels, self._token
        body = {**said, "request": secrets.token_hex(8), "onto": token, "client_id": self._client_id}
        call = Call(method="POST", path=self._path(route), json=body, known=True)
        params, changes = await self._transport.send(call, _read)
        told = params["interaction"]
        labels = _decoded(changes, held if told["onto"] else None)
        if told["step"] > self.step:
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

    def prompt(
        self,
        clicks: Mapping[str, Points] | None = None,
        *,
        curves: Sequence[Points] = (),
        roi: Sequence[int] | None = None,
        label: str | None = None,
        slice: int | None = None,
        reset: bool = False,
    ) -> Mask:
        """As of `AsyncInteraction`."""
        said = self._interaction.prompt(clicks, curves=curves, roi=roi, label=label, slice=slice, reset=reset)
        return cast(Mask, self._run(said))

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


async def _read(response: aiohttp.ClientResponse) -> tuple[dict[str, Any], bytes]:
    return json.loads(response.headers[PARAMS_HEADER]), await response.read()


def _decoded(body: bytes, onto: Mask | None) -> Mask:
    from rayapp.imaging import mask_codec  # sending needs none of the packages that reading needs

    return cast(Mask, mask_codec.decode(body, onto, max_bytes=MAX_LABELS))
