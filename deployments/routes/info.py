"""`GET /info/`: what this server offers, and how far the annotators are; also the readiness check. `POST /reload`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from deployments.access import AsAdmin, AsUser, Service
from rayapp.protocol import Path as Route

router = APIRouter(tags=["info"])


@router.get("/info", include_in_schema=False)
@router.get(Route.INFO)
async def info(services: Service, user: AsUser) -> dict[str, Any]:
    """Models, trainers, strategies, scoring methods, labels, and the datastore's counts."""
    described, status = await asyncio.gather(services.models.describe(), services.datastore.status())
    return {**described, "datastore": status}


@router.post(Route.RELOAD)
async def reload(services: Service, user: AsAdmin) -> dict[str, Any]:
    """Make the app anew."""
    await services.models.reload()
    return {}
