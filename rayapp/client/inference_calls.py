"""Calls that run a model: single inferences and interactions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from rayapp.client.async_interaction import AsyncInteraction
from rayapp.client.caller import Caller, Params
from rayapp.client.infer_response import infer_reader
from rayapp.client.results import InferResult
from rayapp.client.transport import Call
from rayapp.protocol import Output, Route
from rayapp.responses import InteractionState


class InferenceCalls(Caller):
    """Inference on stored images, on a session's image or on an uploaded file."""

    async def infer(
        self,
        model: str,
        image: str = "",
        *,
        params: Params | None = None,
        session: str | None = None,
        file: Path | None = None,
        label: Path | None = None,
        output: Output = Output.ALL,
        to: Path | None = None,
    ) -> InferResult:
        """Run a model on a stored image, on a session's image, or on the image in `file`.

        Args:
            model: The model's name, as `info()` lists it.
            image: Id of a stored image.
            params: Clicks by label name, each a list of voxel indices [i, j, k], and options of the model.
            session: Id of a session, used in place of `image`.
            file: An image that is uploaded with the request.
            label: A label map to start from; scribble models take their strokes from it.
            output: Which parts the response shall have.
            to: File or folder that the mask is streamed to; by default it is kept in memory.

        Returns:
            The mask, on the image's voxel grid, and the params that came with it.

        Raises:
            NotFound: If there is no such model, image or session.
            BadRequest: If the params do not suit the model, or a click lies outside the image.
            ModelBroken: If the model cannot be loaded.
            Busy: If all replicas are still full after the last attempt.
        """
        query = {"image": image, "session_id": session or "", "output": "" if output is Output.ALL else output.value}
        files = [(name, path) for name, path in (("file", file), ("label", label)) if path is not None]
        call = Call(
            method="POST",
            path=Route.INFER.filled(model=model),
            query={name: value for name, value in query.items() if value},
            form={"params": json.dumps(self._with_client_id(params))},
            files=files,
            retry_if_refused=True,
        )
        return await self._transport.send(call, infer_reader(to))

    async def infer_box(
        self, model: str, image: str = "", *, params: Params | None = None, session: str | None = None
    ) -> InferResult:
        """Run a model as `infer` does, with the mask sent as packed bits of its bounding box.

        This is the fastest encoding; decode the mask with `InferResult.labels()`.

        Args:
            model: The model's name.
            image: Id of a stored image.
            params: Clicks by label name, each a list of voxel indices [i, j, k], and options of the model.
            session: Id of a session, used in place of `image`.
        """
        return await self.infer(model, image, params=params, session=session, output=Output.BOX)

    async def open_interaction(self, model: str, image: str) -> AsyncInteraction:
        """Open an interaction: a stored image segmented with a model, prompt by prompt.

        Args:
            model: Name of a model that takes prompts.
            image: Id of a stored image.
        """
        body = self._with_client_id({"model": model, "image": image})
        opened = await self._send("POST", Route.INTERACTIONS, json=body)
        return await self.interaction(opened["id"])

    async def interaction(self, interaction: str) -> AsyncInteraction:
        """Continue an interaction, from any machine.

        Its mask is fetched by the first prompt, or by `AsyncInteraction.mask`.

        Args:
            interaction: The interaction's id.

        Raises:
            NotFound: If there is no such interaction.
        """
        path = Route.INTERACTION.filled(interaction_id=interaction)
        state = cast(InteractionState, await self._get(path))
        return AsyncInteraction(self._transport, state, client_id=self._client_id)

    async def interactions(self, image: str, *, user: str = "") -> list[InteractionState]:
        """The user's interactions on an image, oldest first.

        Args:
            image: Id of a stored image.
            user: Name of another user; reviewers only.
        """
        query = {"image": image, "user": user} if user else {"image": image}
        return cast("list[InteractionState]", await self._get(Route.INTERACTIONS, **query))
