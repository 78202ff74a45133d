"""Caller: the base of the client's groups of calls; holds the connection and sends one call each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayapp.client.transport import Call, Transport, discard, file_reader, read_json
from rayapp.errors import NotFound

Params = Mapping[str, Any]
"""Parameters of a request, by name; plain JSON."""


class Caller:
    """A connection to one server, and the identity that requests carry."""

    def __init__(
        self, url: str, *, token: str | None = None, client_id: str | None = None, timeout: float = 600
    ) -> None:
        """The connection itself is opened on entering the client's context.

        Args:
            url: The server's address, such as `http://127.0.0.1:8000`.
            token: The user's token, for a server started with `--auth`.
            client_id: Name of this annotator's program. A newer click of the same program supersedes its older one
                that is still queued.
            timeout: Seconds that the server may stay silent before a call fails with `Unreachable`.

        Raises:
            BadRequest: If `url` does not begin with `http://` or `https://`.
        """
        self._transport = Transport(url, token=token, timeout=timeout)
        self._client_id = client_id

    def _with_client_id(self, params: Params | None) -> dict[str, Any]:
        return {**(params or {}), **({"client_id": self._client_id} if self._client_id else {})}

    async def _get(self, path: str, **query: str) -> Any:
        return await self._transport.send(Call(method="GET", path=path, query=query), read_json)

    async def _send(
        self, method: str, path: str, json: Any = None, form: Mapping[str, str] | None = None, **query: str
    ) -> Any:
        call = Call(method=method, path=path, query=query, json=json, form=form or {})
        return await self._transport.send(call, read_json)

    async def _exists(self, path: str, method: str = "HEAD", **query: str) -> bool:
        try:
            await self._transport.send(Call(method=method, path=path, query=query), discard)
        except NotFound:
            return False
        return True

    async def _download(self, path: str, to: Path, **query: str) -> Path:
        return await self._transport.send(Call(method="GET", path=path, query=query), file_reader(to))
