"""Errors as HTTP: every exception becomes a status with the body `{"detail": …}`.

The log entry of an unexpected error has an incident id, exception types and places in the code, and never the error's
text, which may hold paths or a patient's data.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from ray.exceptions import RayActorError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.ray_errors import RESTARTING
from rayapp.errors import FULL, Busy, NotSignedIn, RayappError
from rayapp.files.durable import disk_error

logger = logging.getLogger("rayapp.gateway")

_MEANINGS = {
    400: "The request is malformed; the detail says what to correct.",
    401: "No valid token came with the request.",
    403: "The user's role is too low; the detail names the one that is required.",
    404: "Not found; the detail says what there is.",
    406: "The feature is not available on this server.",
    409: "The current state does not allow it.",
    413: "The body, or a size that it declares, exceeds a limit; the detail names the limit.",
    422: "A parameter is missing or of the wrong type, or a file is damaged or unsuitable; nothing was stored.",
    429: "A job of this kind is running; stop it, or queue this one with `enqueue`.",
    502: "The DICOM archive is unreachable, or its answer is invalid.",
    503: "Busy; retry after the seconds in the Retry-After header.",
    504: "The DICOM archive did not answer in time.",
    507: "The server's disk is full, and nothing was stored: retry once there is room.",
}


class Problem(BaseModel):
    """Body of every error response."""

    detail: str | list[dict[str, Any]] = Field(
        description="The cause and what to do; for invalid parameters a list with one {type, loc, msg, input} each."
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a router: these statuses, and the 401 and 403 of every route that requires a role."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in sorted({401, 403, *statuses})}


def explain(app: FastAPI) -> None:
    """Install the exception handlers."""
    app.add_exception_handler(RayappError, _answer)
    app.add_exception_handler(RayActorError, _restarting)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(OSError, _no_room)
    app.add_exception_handler(StarletteHTTPException, _framework)


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, RayappError)
    request.app.state.metrics.failed(type(error).__name__)
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, NotSignedIn):
        headers["WWW-Authenticate"] = 'Bearer realm="rayapp"'
    return JSONResponse({"detail": error.detail}, status_code=error.status, headers=headers)


async def _restarting(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return await _answer(request, Busy(RESTARTING))


async def _no_room(request: Request, error: Exception) -> Response:
    """Wherever a file could not be written for want of room; any other error of the system is unexpected."""
    if isinstance(error, OSError) and error.errno in FULL:
        return await _answer(request, disk_error(error))
    raise error


async def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """The client disconnected; proxies log this as 499."""
    return JSONResponse({"detail": "the client closed the connection"}, status_code=499)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    text = error.detail
    if not isinstance(error, HTTPException) and error.status_code == 404:
        text = "no such route; GET /docs lists all of them"
    elif error.status_code == 405:
        text = f"this route does not support {request.method}; GET /docs lists the methods of each"
    return JSONResponse({"detail": text}, status_code=error.status_code, headers=error.headers)


class Incidents:
    """Middleware that turns an unexpected exception into a 500 with an incident id, under which the log has details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            incident = secrets.token_hex(6)
            scope["app"].state.metrics.failed("unexpected")
            logger.error(
                "incident %s: %s\n%s", incident, _types(error), "".join(traceback.format_tb(error.__traceback__))
            )
            if started:
                raise RuntimeError(f"incident {incident} while an answer was being sent") from None
            text = f"unexpected error; the server's log has details under incident {incident}"
            await JSONResponse({"detail": text}, status_code=500)(scope, receive, send)


def _types(error: BaseException | None) -> str:
    names: list[str] = []
    while error is not None and len(names) < 10:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return " from ".join(names)
