"""`GET /info/`: models, strategies and counts; also the readiness check. `POST /reload`: reload the app."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from deployments.access import AsAdmin, AsUser, Described, Service
from deployments.problems import problems
from rayapp.protocol import Route
from rayapp.responses import Info

router = APIRouter(tags=["info"], responses=problems(503))


@router.get(Route.INFO, response_model=Info)
async def info(services: Service, described: Described, user: AsUser) -> JSONResponse:
    """Models, trainers, strategies, scoring methods, labels, and counts of images and labels."""
    description, status = await asyncio.gather(described.get(), services.datastore.status())
    return JSONResponse({**description, "datastore": status})


@router.post(Route.RELOAD)
async def reload(services: Service, described: Described, user: AsAdmin) -> dict[str, Any]:
    """Reload the app."""
    await services.models.reload()
    described.forget()
    return {}
