"""`/models`: the versions of every model, and which of them serves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from deployments.access import AsAdmin, Described, Service
from deployments.problems import problems
from rayapp.protocol import Path as Route
from rayapp.protocol import checked_name

router = APIRouter(tags=["models"], responses=problems(400, 404, 409, 413, 422, 503))


class Versions(BaseModel):
    """A model's versions, oldest first, and the one that serves, if one does."""

    production: str | None
    versions: list[dict[str, Any]] = Field(description="`version`, and of its card parent, metrics, data and more.")


class Choice(BaseModel):
    """A version by name."""

    version: str


class Serving(BaseModel):
    """The version that serves now."""

    model: str
    version: str


@router.get(Route.MODELS)
async def versions(services: Service, user: AsAdmin) -> dict[str, Versions]:
    """All models that have versions."""
    return {name: Versions(**found) for name, found in (await services.models.models()).items()}


@router.post(Route.PROMOTE)
async def promote(model: str, choice: Choice, services: Service, described: Described, user: AsAdmin) -> Serving:
    """Let a version serve; requests under way finish on the one before."""
    name = checked_name(model, "model")
    version = await services.models.promote(name, checked_name(choice.version, "version"))
    described.forget()
    return Serving(model=name, version=version.version)


@router.post(Route.ROLLBACK)
async def rollback(model: str, services: Service, described: Described, user: AsAdmin) -> Serving:
    """Let the version serve that served before."""
    name = checked_name(model, "model")
    current = await services.models.production(name)
    version = await services.models.rollback(name, leaving=current.version)
    described.forget()
    return Serving(model=name, version=version.version)
