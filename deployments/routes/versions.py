"""`/models`: versions of the models, and which of them is served."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from deployments.access import AsAdmin, Described, Service
from deployments.problems import problems
from rayapp.protocol import Route, checked_name
from rayapp.responses import ServedVersion, Versions

router = APIRouter(tags=["models"], responses=problems(400, 404, 409, 413, 422, 503))


class Choice(BaseModel):
    """Name of a version."""

    version: str


@router.get(Route.MODELS)
async def versions(services: Service, user: AsAdmin) -> dict[str, Versions]:
    """Versions of all models."""
    return await services.models.models()


@router.post(Route.PROMOTE)
async def promote(model: str, choice: Choice, services: Service, described: Described, user: AsAdmin) -> ServedVersion:
    """Promote a version to production. Requests in progress finish on the previous version."""
    name = checked_name(model, "model")
    version = await services.models.promote(name, checked_name(choice.version, "version"))
    described.forget()
    return ServedVersion(model=name, version=version.version)


@router.post(Route.ROLLBACK)
async def rollback(model: str, services: Service, described: Described, user: AsAdmin) -> ServedVersion:
    """Return to the version that was in production before."""
    name = checked_name(model, "model")
    current = await services.models.production(name)
    version = await services.models.rollback(name, leaving=current.version)
    described.forget()
    return ServedVersion(model=name, version=version.version)
