"""Middleware in front of every route: caps on bodies and their time, checks of the Host header, and closing slashes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayapp.protocol import Route

_ARCHIVE = Route.PROXY.partition("{")[0]
MAX_TEXT = 4 << 20
"""Maximum bytes of a body or a field that is held in memory, such as JSON."""


BODY_S = 30.0
"""Seconds that the rest of a body may be waited for, beside those that its bytes need at `SLOWEST`."""
SLOWEST = 10_000
"""Bytes a second: a slow mobile connection has ten times as many."""


class BodyCap:
    """Refuses bodies over the cap (413), by their declared length before they are read, and by the bytes received; and
    bodies that arrive too slowly (408), which would hold a connection for as long as somebody likes.

    Multipart bodies are streamed, to disk or to the archive, and may have `max_body` bytes; others `MAX_TEXT`.
    """

    def __init__(self, app: ASGIApp, *, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Instances for the archive come as multipart/related (STOW-RS); no other route streams that.
        streamed = "multipart/related" if scope["path"].startswith(_ARCHIVE) else "multipart/form-data"
        multipart = headers.get("content-type", "").lower().startswith(streamed)
        cap = self._max_body if multipart else min(self._max_body, MAX_TEXT)
        flag = "raise max_body" if cap == self._max_body else "send files as multipart/form-data"
        text = f"the body is over {cap} bytes: send less, or {flag}"
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > cap:
            closing = {"Connection": "close"}
            await JSONResponse({"detail": text}, status_code=413, headers=closing)(scope, receive, send)
            return
        received, complete, waited = 0, False, 0.0

        async def counted() -> Message:
            nonlocal received, complete, waited
            began, granted = time.monotonic(), BODY_S + received / SLOWEST
            try:
                async with asyncio.timeout(None if complete else granted - waited):
                    message = await receive()
            except TimeoutError:
                slow = f"the body came too slowly: {received} bytes in {granted:.0f} s"
                raise HTTPException(408, f"{slow}; send it again", headers={"Connection": "close"}) from None
            waited += time.monotonic() - began
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > cap:
                raise HTTPException(413, text, headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)


class LoopbackHosts:
    """Refuses requests whose Host header is not a loopback name, on servers without keys.

    This stops DNS rebinding: a web page whose own name resolves to 127.0.0.1 would be of the same origin as the server,
    but its requests still carry that name in `Host`.
    """

    NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
    ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
    """Origins of pages that this machine serves, as a regular expression."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "").lower()
            name, colon, port = host.rpartition(":")
            if (name if colon and port.isdecimal() else host) not in self.NAMES:
                text = "without --auth token this server answers to localhost, 127.0.0.1 and [::1] only"
                await JSONResponse({"detail": text}, status_code=400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Slashes:
    """Serves each fixed path with and without its closing slash, since many clients follow no redirect."""

    def __init__(self, app: ASGIApp, *, paths: Iterable[str]) -> None:
        self._app = app
        fixed = {path for path in paths if "{" not in path and path != "/"}
        twins = {path[:-1] if path.endswith("/") else path + "/": path for path in fixed}
        self._twins = {twin: path for twin, path in twins.items() if twin not in fixed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = self._twins.get(scope.get("path", ""))
        if path is not None:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
