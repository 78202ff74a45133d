"""`/healthz`: the process answers. `/readyz`: all that it needs answers too. `/metrics`: metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from deployments.access import AsUser, Checking, Described, Measures, Service
from deployments.problems import problems
from rayapp.protocol import Route

router = APIRouter(tags=["health"])

PATIENCE_S = 5.0
"""Seconds in which each part must answer."""
OK = "ok"


@router.get(Route.HEALTH)
async def health() -> dict[str, str]:
    """The gateway's process answers. No key is required."""
    return {"status": OK}


@router.get(
    Route.READY, responses={503: {"description": "A component does not answer; the body names it and the error."}}
)
async def ready(services: Service) -> JSONResponse:
    """The state of each component: datastore, models, jobs and inference replicas. No key is required."""
    asked = {
        "datastore": services.datastore.status(),
        "models": services.models.describe(),
        "jobs": services.jobs.jobs(),
    }
    said = dict(zip(asked, await asyncio.gather(*map(_said, asked.values())), strict=True))
    said["inference"] = OK if services.inference.ready else "no replica has started"
    fine = all(word == OK for word in said.values())
    return JSONResponse({"ready": fine, **said}, status_code=200 if fine else 503)


async def _said(answer: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await answer
    except Exception as error:
        return f"no answer: {type(error).__name__}"
    return OK


@router.get(
    Route.METRICS,
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}, **problems(503)},
)
async def metrics(
    services: Service, described: Described, measures: Measures, checks: Checking, user: AsUser
) -> Response:
    """Metrics for Prometheus: requests, errors, inferences by stage, caches, queues, saves, jobs, images, labels."""
    description, status, jobs, sessions = await asyncio.gather(
        described.get(), services.datastore.status(), services.jobs.jobs(), services.sessions.count()
    )
    text = measures.text(description, status, jobs, sessions=sessions, checks=checks.inside)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
