"""The HTTP gateway: authentication, validation, parsing, errors. Stateless; never blocks its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from deployments.audit import Audited
from deployments.description import Description
from deployments.guards import BodyCap, LoopbackHosts, Slashes
from deployments.interactions import OpenedInteractions
from deployments.metrics import Measured, MeasuredInference, Metrics
from deployments.origins import OwnFrames, OwnPages
from deployments.problems import Incidents, explain
from deployments.routes import (
    absent,
    auth,
    datastore,
    dicomweb,
    drafts,
    health,
    images,
    infer,
    info,
    interactions,
    jobs,
    labels,
    logs,
    models,
    ohif,
    pages,
    proxy,
    sessions,
    uncertainty,
    versions,
    viewer,
)
from deployments.routes import next as next_image
from deployments.series import SeriesStore
from deployments.services import Services
from deployments.uploads import Checks
from deployments.wrong_keys import WrongKeys
from rayapp import __version__
from rayapp.audit_log import AuditLog

logger = logging.getLogger("rayapp.gateway")

SWEEP_S = 300.0
_MODULES = (
    *(pages, health, info, infer, interactions, next_image, images, labels),
    *(datastore, sessions, models, versions, jobs, uncertainty, logs),
    *(dicomweb, proxy, viewer, drafts, ohif, absent),
)


def build_gateway(services: Services) -> FastAPI:
    """Build the ASGI app over these services."""
    settings, metrics = services.settings, Metrics()
    services = replace(services, inference=MeasuredInference(services.inference, metrics))
    app = FastAPI(
        title="rayapp",
        version=__version__,
        description='AI-assisted interactive labelling of 3D medical images. Errors are `{"detail": text}`.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_sweeping,
    )
    app.state.services = services
    app.state.description = Description(services.models, services.jobs)
    app.state.metrics = metrics
    app.state.checks = Checks()
    app.state.wrong_keys = WrongKeys()
    app.state.interactions = OpenedInteractions(services.datastore)
    app.state.archive = proxy.Archive(settings)
    app.state.series = SeriesStore(services, app.state.checks)
    with_keys = settings.auth != "none"
    for module in (*_MODULES, auth) if with_keys else _MODULES:
        app.router.routes.extend(module.router.routes)
    explain(app)
    # The last added is the first to see a request.
    app.add_middleware(Slashes, paths=[route.path for route in app.routes if isinstance(route, APIRoute)])
    app.add_middleware(BodyCap, max_body=settings.max_body)
    app.add_middleware(Incidents)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins) or (["*"] if with_keys else []),
        allow_origin_regex=LoopbackHosts.ORIGIN,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        max_age=600,
    )
    if not with_keys:
        app.add_middleware(OwnPages, allowed=settings.cors_origins)
        app.add_middleware(LoopbackHosts)
    app.add_middleware(OwnFrames)
    app.add_middleware(Audited, log=AuditLog.of(settings.workspace))
    app.add_middleware(Measured, metrics=metrics)
    return app


@contextlib.asynccontextmanager
async def _sweeping(app: FastAPI) -> AsyncIterator[None]:
    """Remove expired sessions every few minutes. All gateways do; sessions are on disk, so the first one wins."""
    task = asyncio.create_task(_sweep(app.state.services))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await app.state.archive.close()


async def _sweep(services: Services) -> None:
    while True:
        try:
            await services.sessions.sweep()
        except OSError as error:
            logger.error("expired sessions could not be removed: %s", type(error).__name__)
        await asyncio.sleep(SWEEP_S)
