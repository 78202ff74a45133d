"""`/model/`: the weights that serve: download, replace, take away."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse

from deployments.access import AsAdmin, AsAnnotator, Service
from deployments.uploads import checked, staged
from rayapp.models.store import ModelVersion
from rayapp.protocol import Path as Route
from rayapp.protocol import checked_name

router = APIRouter(tags=["models"])

_SHOWN = ("checksum", "modified_time")


async def _summary(version: ModelVersion) -> dict[str, Any]:
    summary = await checked(version.summary)
    return {key: summary[key] for key in _SHOWN}


@router.get(Route.MODEL_INFO)
async def info(model: str, services: Service, user: AsAdmin) -> dict[str, Any]:
    """Checksum and time of the version that serves."""
    return await _summary(await services.models.production(checked_name(model, "model")))


@router.get(Route.MODEL, response_class=FileResponse)
async def download(model: str, services: Service, user: AsAdmin) -> FileResponse:
    """The weights that serve, as safetensors."""
    version = await services.models.production(checked_name(model, "model"))
    name = version.name + version.weights.suffix
    return FileResponse(version.weights, media_type="application/octet-stream", filename=name)


@router.put(Route.MODEL)
async def upload(
    model: str,
    services: Service,
    user: AsAnnotator,
    file: Annotated[UploadFile, File()],
) -> dict[str, Any]:
    """Publish weights (safetensors that fit the model's network) as its next version."""
    async with staged(services, file, ".safetensors") as path:
        card = {"uploaded_by": user.name}
        return await _summary(await services.models.publish(checked_name(model, "model"), path, card))


@router.delete(Route.MODEL)
async def retire(model: str, services: Service, user: AsAnnotator) -> dict[str, Any]:
    """Let no version of the model serve; the versions stay on disk."""
    await services.models.retire(checked_name(model, "model"))
    return {}
