"""Calls about models: their versions, and the weights in production."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rayapp.client.caller import Caller
from rayapp.client.transport import Call, read_json
from rayapp.protocol import Route
from rayapp.responses import ModelFile, Versions


class ModelCalls(Caller):
    """Model versions. Publishing needs the role of an annotator, everything else that of an administrator."""

    async def download_model(self, model: str, to: Path) -> Path:
        """Download the weights of the version in production, as safetensors.

        Args:
            model: The model's name.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return await self._download(Route.MODEL.filled(model=model), to)

    async def model_info(self, model: str) -> ModelFile:
        """Checksum and time of the version in production."""
        return cast(ModelFile, await self._get(Route.MODEL_INFO.filled(model=model)))

    async def upload_model(self, model: str, file: Path) -> ModelFile:
        """Publish weights as the model's next version.

        Args:
            model: The model's name.
            file: Weights as safetensors, for the network of the version in production.

        Raises:
            Unreadable: If the weights do not fit the network; the version before stays in production.
        """
        call = Call(method="PUT", path=Route.MODEL.filled(model=model), files=[("file", file)])
        return cast(ModelFile, await self._transport.send(call, read_json))

    async def delete_model(self, model: str) -> None:
        """Take the model out of production; its versions are kept."""
        await self._send("DELETE", Route.MODEL.filled(model=model))

    async def models(self) -> dict[str, Versions]:
        """The versions of each model, oldest first, and which of them is in production."""
        return cast("dict[str, Versions]", await self._get(Route.MODELS))

    async def promote(self, model: str, version: str) -> str:
        """Promote a version to production. Requests in flight finish on the version before.

        Args:
            model: The model's name.
            version: The version's name, as `models()` lists it.

        Returns:
            The version's name.
        """
        answer = await self._send("POST", Route.PROMOTE.filled(model=model), json={"version": version})
        return str(answer["version"])

    async def rollback(self, model: str) -> str:
        """Promote the version that was in production before the present one.

        Args:
            model: The model's name.

        Returns:
            That version's name.
        """
        return str((await self._send("POST", Route.ROLLBACK.filled(model=model)))["version"])
