"""The gateway: authentication, validation, parsing, errors. Stateless and cheap; nothing here decodes or waits."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from deployments.body import BodyCap
from deployments.routes import auth, datastore, images, infer, info, jobs, labels, logs, models, pages, sessions
from deployments.routes import next as next_image
from deployments.services import Services
from rayapp import __version__
from rayapp.errors import Busy, NotSignedIn, RayappError

logger = logging.getLogger("rayapp.gateway")

_ROUTERS = (pages, info, infer, next_image, images, labels, datastore, sessions, models, jobs, logs)


def build_gateway(services: Services) -> FastAPI:
    """The ASGI app over these services."""
    settings = services.settings
    app = FastAPI(
        title="rayapp",
        version=__version__,
        description='AI-assisted interactive labelling of 3D medical images. Errors are `{"detail": text}`.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={code: {"description": HTTPStatus(code).phrase} for code in (400, 401, 403, 404, 413, 503)},
    )
    app.state.services = services
    for module in _ROUTERS:
        app.include_router(module.router)
    if settings.auth != "none":
        app.include_router(auth.router)
    app.add_exception_handler(RayappError, _named)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unforeseen)
    app.add_middleware(BodyCap, max_body=settings.max_body)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        max_age=600,
    )
    if settings.auth == "none":
        # A web page elsewhere must not reach the open loopback server under a name that resolves to it.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "::1"])
    return app


Handler = Callable[[Request, Exception], Awaitable[JSONResponse]]


async def _named(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RayappError)
    headers: dict[str, str] = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, NotSignedIn):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"detail": error.detail}, error.status, headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # `input` may be an upload or a patient's data: name the place, not what was there.
    detail: list[dict[str, Any]] = [{key: e[key] for key in ("type", "loc", "msg")} for e in error.errors()]
    return JSONResponse({"detail": detail}, 422)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(4)
    route = request.scope.get("route")
    logger.error("incident %s in %s %s", incident, request.method, getattr(route, "path", "?"), exc_info=error)
    return JSONResponse({"detail": f"something broke inside the server; its log has it as incident {incident}"}, 500)
