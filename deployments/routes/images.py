"""`/datastore/image`: upload, download and delete images, and their infos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deployments.access import AsAdmin, AsAnnotator, AsUser, Checking, Service
from deployments.forms import describe_form, read_form
from deployments.problems import problems
from deployments.replies import FILE, file_reply
from deployments.uploads import author_of, check_image, info_of, to_store
from rayapp.datastore.interfaces import SERIES_EXT
from rayapp.errors import NotFound
from rayapp.imaging.detached import DETACHED
from rayapp.imaging.nifti import write_volume
from rayapp.imaging.reader import read_volume, split_ext
from rayapp.models.store import sha256_of
from rayapp.protocol import Route, checked_name
from rayapp.responses import StoredImage

router = APIRouter(tags=["images"], responses=problems(400, 404, 409, 413, 422, 503))

_FORM = describe_form(
    texts={"params": "JSON object: kept as the image's info."}, files={"file": "The image."}, needed=["file"]
)
_INFO = describe_form(texts={"info": "JSON object: keys to merge into the info."})


@router.put(Route.DATASTORE, include_in_schema=False)
@router.put(Route.IMAGE, openapi_extra=_FORM)
async def upload(
    request: Request, services: Service, checks: Checking, user: AsAnnotator, image: Annotated[str, Query()] = ""
) -> StoredImage:
    """Upload an image. Its id is `image`, or the file's name without extension.

    A file that cannot be decoded completely is refused, and nothing is stored.
    """
    if image:
        checked_name(image, "image")
    async with read_form(request, texts=("params",), files=("file",), stage=to_store(services)) as form:
        file, info = form.needed("file"), form.json("params")
        stem, ext = split_ext(file.name)
        image_id = checked_name(image or stem, "image")
        await checks.run(check_image, file.path, services.settings.max_volume)
        author = author_of(user, info)
        added = await services.datastore.add_image(image_id, file.path, ext, info=info_of(info), author=author)
    return StoredImage(image=added.id)


@router.delete(Route.DATASTORE, include_in_schema=False)
@router.delete(Route.IMAGE)
async def remove(services: Service, user: AsAdmin, id: Annotated[str, Query()]) -> dict[str, Any]:
    """Remove an image and its labels."""
    await services.datastore.remove_image(checked_name(id, "image"))
    return {}


@router.head(Route.IMAGE, response_class=Response)
async def exists(
    services: Service,
    checks: Checking,
    user: AsUser,
    image: Annotated[str, Query()],
    check_sum: Annotated[str, Query()] = "",
) -> Response:
    """200 if the image exists; with `check_sum`, if its SHA-256 is that (the prefix `SHA256:` is optional)."""
    record = await services.datastore.image(checked_name(image, "image"))
    if check_sum:
        if record.ext in DETACHED:
            raise NotFound(f"image {image!r} is stored in two files and has no checksum")
        try:
            digest = await checks.run(sha256_of, record.path)
        except IsADirectoryError:
            raise NotFound(f"image {image!r} is a folder of DICOM files and has no checksum") from None
        if digest != check_sum.lower().removeprefix("sha256:"):
            raise NotFound(f"image {image!r} has a different checksum")
    return Response()


@router.get(Route.IMAGE, response_class=Response, responses=FILE)
async def download(services: Service, checks: Checking, user: AsUser, image: Annotated[str, Query()]) -> Response:
    """The image's file; a folder of DICOM files, and an image in two files, are converted to NIfTI."""
    record = await services.datastore.image(checked_name(image, "image"))
    if record.ext and record.ext not in DETACHED:
        return await file_reply(record.path, name=record.id + record.ext)
    staged = await services.datastore.stage(SERIES_EXT)
    await checks.run(_convert, record.path, staged, services.settings.max_volume)
    return await file_reply(staged, name=record.id + SERIES_EXT, remove=True)


def _convert(series: Path, target: Path, max_bytes: int) -> None:
    write_volume(read_volume(series, max_bytes=max_bytes), target)


@router.get(Route.IMAGE_INFO)
async def info(services: Service, user: AsUser, image: Annotated[str, Query()]) -> dict[str, Any]:
    """The image's info, with its path on the server; `{}` for an unknown image."""
    try:
        record = await services.datastore.image(checked_name(image, "image"))
    except NotFound:
        return {}
    return {**record.info, "path": str(record.path)}


@router.put(Route.IMAGE_INFO, openapi_extra=_INFO)
async def update_info(request: Request, services: Service, user: AsAnnotator, image: Annotated[str, Query()]) -> None:
    """Merge keys into the image's info."""
    async with read_form(request, texts=("info",)) as form:
        keys = info_of(form.json("info"))
    await services.datastore.update_image_info(checked_name(image, "image"), {**keys, "user": user.name})
