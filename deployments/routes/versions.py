"""`/models`: the versions of every model, and which of them serves."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from deployments.access import AsAdmin, Described, Service
from deployments.problems import problems
from rayapp.protocol import Route, checked_name
from rayapp.responses import ServedVersion, Versions

router = APIRouter(tags=["models"], responses=problems(400, 404, 409, 413, 422, 503))


class Choice(BaseModel):
    """A version by name."""

    version: str


@router.get(Route.MODELS)
async def versions(services: Service, user: AsAdmin) -> dict[str, Versions]:
    """All models that have versions."""
    return await services.models.models()


@router.post(Route.PROMOTE)
async def promote(model: str, choice: Choice, services: Service, described: Described, user: AsAdmin) -> ServedVersion:
    """Let a version serve; requests under way finish on the one before."""
    name = checked_name(model, "model")
    version = await services.models.promote(name, checked_name(choice.version, "version"))
    described.forget()
    return ServedVersion(model=name, version=version.version)


@router.post(Route.ROLLBACK)
async def rollback(model: str, services: Service, described: Described, user: AsAdmin) -> ServedVersion:
    """Let the version serve that served before."""
    name = checked_name(model, "model")
    current = await services.models.production(name)
    version = await services.models.rollback(name, leaving=current.version)
    described.forget()
    return ServedVersion(model=name, version=version.version)
