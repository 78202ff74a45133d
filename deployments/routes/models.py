"""`/model/`: download, replace and retire the weights of a model."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.access import AsAdmin, AsAnnotator, Described, Service, not_allowed
from deployments.forms import describe_form, read_form
from deployments.problems import problems
from deployments.replies import FILE, file_reply
from rayapp.models.store import ModelVersion
from rayapp.models.weights import is_torch
from rayapp.protocol import Role, Route, checked_name
from rayapp.responses import ModelFile

router = APIRouter(tags=["models"], responses=problems(400, 404, 413, 422, 503))

_FORM = describe_form(
    texts={},
    files={"file": "A safetensors file; administrators may also send a torch file of tensors."},
    needed=["file"],
)


async def _summary(version: ModelVersion) -> ModelFile:
    summary = await asyncio.to_thread(version.summary)
    return ModelFile(checksum=summary["checksum"], modified_time=summary["modified_time"])


async def _name(described: Described, model: str) -> str:
    return checked_name(await described.spelled("models", model), "model")


@router.get(Route.MODEL_INFO)
async def info(model: str, services: Service, described: Described, user: AsAdmin) -> ModelFile:
    """Checksum and modification time of the served version."""
    return await _summary(await services.models.production(await _name(described, model)))


@router.get(Route.MODEL, response_class=Response, responses=FILE)
async def download(model: str, services: Service, described: Described, user: AsAdmin) -> Response:
    """Weights of the served version, as safetensors."""
    version = await services.models.production(await _name(described, model))
    return await file_reply(version.weights, name=version.name + version.weights.suffix)


@router.put(Route.MODEL, openapi_extra=_FORM)
async def upload(model: str, request: Request, services: Service, described: Described, user: AsAnnotator) -> ModelFile:
    """Publish weights as the model's next version and serve it. Weights that do not fit the network are refused."""
    name = await _name(described, model)
    await services.models.production(name)

    async def stage(_: str) -> Path:
        return await services.datastore.stage(".weights")

    async with read_form(request, files=("file",), stage=stage) as form:
        weights = form.needed("file").path
        if await asyncio.to_thread(is_torch, weights) and not user.role.reaches(Role.ADMIN):
            raise not_allowed(user, Role.ADMIN)
        version = await services.models.upload(name, weights, {"uploaded_by": user.name}, request=secrets.token_hex(16))
    described.forget()
    return await _summary(version)


@router.delete(Route.MODEL)
async def retire(model: str, services: Service, described: Described, user: AsAnnotator) -> dict[str, Any]:
    """Stop serving the model; its versions stay on disk."""
    await services.models.retire(await _name(described, model))
    described.forget()
    return {}
