"""What goes wrong, as HTTP: every error of `rayapp.errors` and everything else becomes a status and `{"detail": …}`.

The log of an unforeseen error carries an incident id, types and places in the code, and never the error's text, which
may hold paths or a patient's data.
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
from rayapp.errors import Busy, NotSignedIn, RayappError

logger = logging.getLogger("rayapp.gateway")

_MEANINGS = {
    400: "The request is malformed: the text says what to correct.",
    401: "No valid token came with the request.",
    403: "The user's role does not reach so far: the text names the one that does.",
    404: "There is no such thing: the text says what there is.",
    406: "The feature is not available on this server.",
    409: "The state forbids it now.",
    413: "The body, or what it declares, is over a cap: the text names it.",
    422: "Parameters missing or of the wrong type, or a file that is not what it should be: nothing was stored.",
    429: "One runs already: stop it, or let this one wait (`enqueue`).",
    502: "The DICOM archive is away, or answers wrongly.",
    503: "Busy: come back after the seconds in Retry-After.",
    504: "The DICOM archive did not answer in time.",
}


class Problem(BaseModel):
    """Body of every error."""

    detail: str | list[dict[str, Any]] = Field(
        description="What to do, or for wrong parameters one {type, loc, msg, input} each."
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a router whose routes may answer these, beside the 401 and 403 of any that asks a role."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in sorted({401, 403, *statuses})}


def explain(app: FastAPI) -> None:
    """Install the handlers."""
    app.add_exception_handler(RayappError, _told)
    app.add_exception_handler(RayActorError, _restarting)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(StarletteHTTPException, _framework)


async def _told(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, RayappError)
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, NotSignedIn):
        headers["WWW-Authenticate"] = 'Bearer realm="rayapp"'
    return JSONResponse({"detail": error.detail}, status_code=error.status, headers=headers)


async def _restarting(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return await _told(request, Busy(RESTARTING))


async def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Nobody reads it; 499 is what proxies log for a client that left."""
    return JSONResponse({"detail": "the client went away"}, status_code=499)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    text = error.detail
    if not isinstance(error, HTTPException) and error.status_code == 404:
        text = "there is no such route: GET /docs lists them"
    elif error.status_code == 405:
        text = f"this route does not answer {request.method}: GET /docs lists what it answers"
    return JSONResponse({"detail": text}, status_code=error.status_code, headers=error.headers)


class Incidents:
    """Middleware: whatever nobody foresaw becomes a 500 that names an incident, which the log explains."""

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
            logger.error(
                "incident %s: %s\n%s", incident, _types(error), "".join(traceback.format_tb(error.__traceback__))
            )
            if started:
                raise RuntimeError(f"incident {incident} while an answer was being sent") from None
            text = f"something went wrong that should not have; the server's log tells more under incident {incident}"
            await JSONResponse({"detail": text}, status_code=500)(scope, receive, send)


def _types(error: BaseException | None) -> str:
    names: list[str] = []
    while error is not None and len(names) < 10:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return " from ".join(names)
