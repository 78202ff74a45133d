"""`/datastore/label`: save, download, delete labels, and their info."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse

from deployments.access import AsAdmin, AsAnnotator, AsUser, Service
from deployments.services import Services
from deployments.uploads import author_of, check_label, checked, extension, json_object, label_from_raw, staged
from rayapp.datastore.protocol import LabelRecord
from rayapp.errors import NotFound
from rayapp.protocol import FINAL, checked_name
from rayapp.protocol import Path as Route

router = APIRouter(tags=["labels"])

Tag = Annotated[str, Query()]


@router.put(Route.LABEL)
async def save(
    services: Service,
    user: AsAnnotator,
    label: Annotated[UploadFile, File()],
    image: Annotated[str, Query()],
    tag: Tag = "",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Save a label of an image. Acknowledged means durable; every earlier save stays as a revision.

    A file that is no whole label map on the image's grid is refused and stored nowhere.
    """
    info = json_object(params, "params")
    ext = extension(label.filename, raw=True)
    tag = checked_name(tag or FINAL, "tag")
    record = await services.datastore.image(checked_name(image, "image"))
    async with staged(services, label, ext) as path:
        if ext == ".bin":
            ext, raw = ".nii.gz", path
            path = await services.datastore.stage(ext)
            await checked(label_from_raw, raw, record.path, path)
        else:
            await checked(check_label, path, record.path, services.settings.max_volume)
        model = info.get("model_version")
        await services.datastore.save_label(
            record.id,
            tag,
            path,
            ext,
            info=info,
            author=author_of(user, info),
            model_version=None if model is None else str(model),
        )
    return {"image": record.id, "label": record.id, **await services.models.label_saved(record.id, tag)}


async def _label(services: Services, label: str, tag: str) -> LabelRecord:
    found: LabelRecord = await services.datastore.label(checked_name(label, "label"), checked_name(tag, "tag"))
    return found


@router.head(Route.LABEL)
async def exists(services: Service, user: AsUser, image: Annotated[str, Query()], tag: Tag) -> Response:
    """200 if the image has a label under the tag."""
    await _label(services, image, tag)
    return Response()


@router.get(Route.LABEL, response_class=FileResponse)
async def download(services: Service, user: AsUser, label: Annotated[str, Query()], tag: Tag) -> FileResponse:
    """The newest revision's file."""
    found = await _label(services, label, tag)
    return FileResponse(found.path, media_type="application/octet-stream", filename=found.id + found.ext)


@router.delete(Route.LABEL)
async def remove(services: Service, user: AsAdmin, id: Annotated[str, Query()], tag: Tag) -> dict[str, Any]:
    """Take the label away (its revisions stay); also when there is none."""
    await services.datastore.remove_label(checked_name(id, "label"), checked_name(tag, "tag"))
    return {}


@router.get(Route.LABEL_INFO)
async def info_of(services: Service, user: AsUser, label: Annotated[str, Query()], tag: Tag) -> dict[str, Any]:
    """What was saved with the label; `{}` if there is none."""
    try:
        return (await _label(services, label, tag)).info
    except NotFound:
        return {}


@router.put(Route.LABEL_INFO)
async def update_info(
    services: Service, user: AsAnnotator, label: Annotated[str, Query()], tag: Tag, info: Annotated[str, Form()]
) -> None:
    """Merge keys into the label's info."""
    merged = {**json_object(info, "info"), "user": user.name}
    await services.datastore.update_label_info(checked_name(label, "label"), checked_name(tag, "tag"), merged)


@router.put(Route.UPDATE_LABEL_INFO, include_in_schema=False)
async def update_info_of_reviewer(
    services: Service, user: AsAnnotator, label: Annotated[str, Query()], tag: Tag, params: Annotated[str, Form()]
) -> None:
    """The same, as the Reviewer module of 3D Slicer sends it."""
    await update_info(services, user, label, tag, params)
