"""Middleware against pages of other origins: they may neither act in the user's name nor frame our pages.

A server without keys knows its callers by where they come from alone, and every page that a browser on this machine
shows can send it simple requests, whose answers it need not be able to read (cross-site request forgery).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "https": 443}
_FOREIGN = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` of a page of another origin; another port of this machine is `same-site`."""


class OwnPages:
    """Answers 403 to requests from pages of other origins, on servers without keys.

    A request is foreign if its `Origin` is neither this server's, by whichever loopback name, nor one of `allowed`; or,
    where a browser sends no `Origin`, if its `Sec-Fetch-Site` says so. Following a link to one of our pages is not a
    request of the page that holds the link. Programs other than browsers send neither header.
    """

    def __init__(self, app: ASGIApp, *, allowed: Iterable[str] = ()) -> None:
        """Args:
        allowed: origins of further pages that may ask, such as `https://viewer.example`.
        """
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_foreign(scope["method"], Headers(scope=scope)):
            text = (
                "without --auth token this server answers only to its own web pages and to those of cors_origins: "
                "add the page's origin there, or start the server with keys"
            )
            await JSONResponse({"detail": text}, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_foreign(self, method: str, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin not in self._allowed and not _is_own(origin, headers.get("host", ""))
        opens_a_page = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return headers.get("sec-fetch-site") in _FOREIGN and not opens_a_page


def _is_own(origin: str, host: str) -> bool:
    """True if a page of `origin` came from the server that was asked as `host`."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        default = _PORTS[page.scheme]
        return page.hostname in LOOPBACK and (page.port or default) == (server.port or default)
    except (KeyError, ValueError):  # "null", of a file or a sandboxed frame, and what is no origin at all
        return False


class OwnFrames:
    """Lets only our own pages frame an answer, and no browser guess at its type (OWASP's secure headers)."""

    HEADERS: ClassVar = {
        "Content-Security-Policy": "frame-ancestors 'self'",
        "X-Frame-Options": "SAMEORIGIN",
        "X-Content-Type-Options": "nosniff",
    }

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, headed)
