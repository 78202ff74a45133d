"""The audit of the gateway: a middleware that gives requests their ids and records who did what.

A change is recorded before it is answered; clicks and what was only read soon after. The same reading of the same
person, and the same refusal, is recorded once in ten minutes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayapp.audit_log import AuditLog, Fields
from rayapp.protocol import Route
from rayapp.runtime.request_id import REQUEST
from rayapp.users import User

logger = logging.getLogger("rayapp.gateway")

HEADER = "X-Request-ID"
REPEAT_S = 600.0
"""Seconds in which the same reading is not recorded again."""
MAX_SEEN = 10_000
MAX_WAITING = 100_000
"""Records that may wait for a slow disk; further ones are counted in the log."""
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_IMAGES = ("image", "label", "id", "series", "study")
"""Parameters of paths and queries that name an image."""
_SOON = ("/infer", "/interactions", Route.NEXT.partition("{")[0], "/viewer")
"""Paths of work that somebody waits for, and that the click log records durably by itself."""
_UNTOLD = {Route.METRICS.value, Route.HEALTH.value, Route.READY.value}
_PAIR = tuple[Fields, "Future[None]"]


def about(request: Request, *, image: str | None = None, revision: int | None = None) -> None:
    """Say which image a request is about, if its path and query do not, and which revision it made or read."""
    for name, value in (("audit_image", image), ("audit_revision", revision)):
        if value is not None:
            setattr(request.state, name, value)


class Audited:
    """Middleware that records requests of signed-in people, and refused ones. Belongs to one event loop."""

    def __init__(self, app: ASGIApp, *, log: AuditLog) -> None:
        self._app, self._log = app, log
        self._waiting: queue.Queue[_PAIR] = queue.Queue(MAX_WAITING)
        self._seen: dict[Hashable, float] = {}
        self._thread: threading.Thread | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        REQUEST.set(request_id)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                await self._record(scope, int(message["status"]))
            await send(message)

        await self._app(scope, receive, noted)

    async def _record(self, scope: Scope, status: int) -> None:
        state = scope["state"]
        user: User | None = state.get("user")
        path = getattr(scope.get("route"), "path", None)
        if path in _UNTOLD or path is None or (user is None and status != 401):
            return
        action, client = f"{scope['method']} {path}", (scope.get("client") or ("",))[0]
        image = state.get("audit_image") or _image_of(scope)
        reading = scope["method"] in ("GET", "HEAD")
        if (reading or status == 401) and self._seen_lately((user and user.name, action, image, status, client)):
            return
        fields = {
            "user": user.name if user else None,
            "role": user.role.value if user else None,
            "action": action,
            "image": image,
            "revision": state.get("audit_revision"),
            "outcome": status,
            "from": client,
            "request": state["request_id"],
        }
        written = self._queue(fields)
        if written is not None and not reading and status < 400 and not scope["path"].startswith(_SOON):
            try:
                await asyncio.wrap_future(written)
            except OSError as error:
                logger.error("what was done could not be recorded: %s", type(error).__name__)

    def _seen_lately(self, key: Hashable) -> bool:
        now = time.monotonic()
        if self._seen.get(key, 0.0) > now:
            return True
        if len(self._seen) >= MAX_SEEN:
            self._seen = {each: until for each, until in self._seen.items() if until > now}
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen[key] = now + REPEAT_S
        return False

    def _queue(self, fields: Fields) -> Future[None] | None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
            self._thread.start()
        written: Future[None] = Future()
        try:
            self._waiting.put_nowait((fields, written))
        except queue.Full:
            logger.error("a record of the audit was lost: the disk is too slow")
            return None
        return written

    def _write(self) -> None:
        """Append what waits, as one batch for one fsync."""
        while True:
            batch = [self._waiting.get()]
            while len(batch) < 1000 and not self._waiting.empty():
                batch.append(self._waiting.get())
            try:
                self._log.append([self._pseudonymous(fields) for fields, _ in batch])
            except OSError as error:
                for _, written in batch:
                    written.set_exception(error)
                logger.error("%d records of the audit were lost: %s", len(batch), type(error).__name__)
            else:
                for _, written in batch:
                    written.set_result(None)

    def _pseudonymous(self, fields: Fields) -> Fields:
        image = fields["image"]
        return {**fields, "image": self._log.pseudonym(str(image)) if image else None}


def _image_of(scope: Scope) -> str | None:
    """The image that the path or the query names."""
    named = {**{name: values[0] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}}
    named.update(scope.get("path_params", {}))
    return next((str(named[name]) for name in _IMAGES if named.get(name)), None)
