"""`POST /activelearning/{strategy}`: the next image."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from deployments.access import AsUser, Service
from deployments.uploads import json_object
from rayapp.protocol import Path as Route
from rayapp.protocol import checked_name

router = APIRouter(tags=["active learning"])


@router.post(Route.NEXT)
async def next_image(strategy: str, request: Request, services: Service, user: AsUser) -> dict[str, Any]:
    """The image this strategy hands out; `{}` when nothing is left. The body is the strategy's configuration."""
    config = json_object((await request.body()).decode(errors="replace"), "the body")
    answer: dict[str, Any] = await services.models.next_image(checked_name(strategy, "strategy"), config)
    return answer
