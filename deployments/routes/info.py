"""`GET /info/`: what this server offers, and how far the annotators are; also the readiness check. `POST /reload`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from deployments.access import AsAdmin, AsUser, Described, Service
from deployments.problems import problems
from rayapp.protocol import Path as Route

router = APIRouter(tags=["info"], responses=problems(503))


class Status(BaseModel):
    """Images, images with a `final` label, and labels by tag."""

    total: int
    completed: int
    label_tags: dict[str, int]


class Model(BaseModel):
    """A model that is served; `labels` maps names to contiguous values."""

    type: str
    labels: dict[str, int]
    dimension: int
    description: str
    config: dict[str, Any]
    version: str


class Info(BaseModel):
    """What the server offers; `broken_models` says why a model is not among `models`."""

    name: str
    description: str
    version: str
    labels: list[str]
    models: dict[str, Model]
    trainers: dict[str, dict[str, Any]]
    strategies: dict[str, dict[str, Any]]
    scoring: dict[str, dict[str, Any]]
    train_stats: dict[str, dict[str, Any]]
    broken_models: dict[str, str]
    datastore: Status


@router.get(Route.INFO, response_model=Info)
async def info(services: Service, described: Described, user: AsUser) -> JSONResponse:
    """Models, trainers, strategies, scoring methods, labels, and the datastore's counts."""
    said, status = await asyncio.gather(described.get(), services.datastore.status())
    return JSONResponse({**said, "datastore": status})


@router.post(Route.RELOAD)
async def reload(services: Service, described: Described, user: AsAdmin) -> dict[str, Any]:
    """Make the app anew."""
    await services.models.reload()
    described.forget()
    return {}
