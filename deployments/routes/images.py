"""`/datastore/image`: upload, download, delete images, and their info."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse

from deployments.access import AsAdmin, AsAnnotator, AsUser, Service
from deployments.uploads import author_of, check_image, checked, extension, image_name, is_folder, json_object, staged
from rayapp.errors import NotFound
from rayapp.models.store import sha256_of
from rayapp.protocol import Path as Route
from rayapp.protocol import checked_name

router = APIRouter(tags=["images"])


@router.put(Route.DATASTORE, include_in_schema=False)
@router.put(Route.IMAGE)
async def upload(
    services: Service,
    user: AsAnnotator,
    file: Annotated[UploadFile, File()],
    image: Annotated[str, Query()] = "",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """Add an image; a file that cannot be read whole is refused and stored nowhere."""
    info = json_object(params, "params")
    ext = extension(file.filename)
    image_id = checked_name(image or image_name(file.filename), "image")
    async with staged(services, file, ext) as path:
        await checked(check_image, path, services.settings.max_volume)
        added = await services.datastore.add_image(image_id, path, ext, info=info, author=author_of(user, info))
    return {"image": added.id}


@router.delete(Route.DATASTORE, include_in_schema=False)
@router.delete(Route.IMAGE)
async def remove(services: Service, user: AsAdmin, id: Annotated[str, Query()]) -> dict[str, Any]:
    """Remove an image and its labels."""
    await services.datastore.remove_image(checked_name(id, "image"))
    return {}


@router.head(Route.IMAGE)
async def exists(
    services: Service,
    user: AsUser,
    image: Annotated[str, Query()],
    check_sum: Annotated[str, Query()] = "",
) -> Response:
    """200 if the image is there (and has this SHA-256, with or without the prefix `SHA256:`)."""
    record = await services.datastore.image(checked_name(image, "image"))
    if check_sum:
        digest = await checked(sha256_of, record.path)
        if digest != check_sum.lower().removeprefix("sha256:"):
            raise NotFound(f"image {image!r} has another checksum")
    return Response()


@router.get(Route.IMAGE, response_class=FileResponse)
async def download(services: Service, user: AsUser, image: Annotated[str, Query()]) -> FileResponse:
    """The image's file."""
    record = await services.datastore.image(checked_name(image, "image"))
    if await checked(is_folder, record):
        raise NotFound(f"image {image!r} is a folder of DICOM files and has no single file")
    return FileResponse(record.path, media_type="application/octet-stream", filename=record.id + record.ext)


@router.get(Route.IMAGE_INFO)
async def info_of(services: Service, user: AsUser, image: Annotated[str, Query()]) -> dict[str, Any]:
    """What is known of the image; `{}` for one that is not there."""
    try:
        record = await services.datastore.image(checked_name(image, "image"))
    except NotFound:
        return {}
    return {**record.info, "path": str(record.path)}


@router.put(Route.IMAGE_INFO)
async def update_info(
    services: Service, user: AsAnnotator, image: Annotated[str, Query()], info: Annotated[str, Form()]
) -> None:
    """Merge keys into the image's info."""
    merged = {**json_object(info, "info"), "user": user.name}
    await services.datastore.update_image_info(checked_name(image, "image"), merged)
