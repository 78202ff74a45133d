"""`/datastore/label`: save, download and delete labels, and their infos."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.access import AsAdmin, AsAnnotator, AsUser, Checking, Service
from deployments.audit import about
from deployments.conditions import Expected, entity_tag
from deployments.forms import Upload, describe_form, read_form
from deployments.problems import problems
from deployments.replies import FILE, file_reply
from deployments.services import Services
from deployments.uploads import Checks, author_of, check_label, extension, info_of, label_from_raw, to_store
from rayapp.datastore.interfaces import Author, ImageRecord, LabelRecord, Revision
from rayapp.errors import NotFound
from rayapp.imaging.placement import RAW
from rayapp.protocol import FINAL, Route, checked_name
from rayapp.responses import LabelRevision, SavedLabel

router = APIRouter(tags=["labels"], responses=problems(400, 404, 409, 413, 422, 503))

logger = logging.getLogger("rayapp.gateway")

Name = Annotated[str, Query()]
Number = Annotated[int | None, Query(ge=1, description="Number of a revision, from 1.")]
_FORM = describe_form(
    texts={"params": "JSON object: kept as the label's info."},
    files={"label": "The label map, on the image's grid; `.bin` for raw uint8 voxels, i fastest."},
    needed=["label"],
)
_INFO = describe_form(texts={"info": "JSON object: keys to merge into the info."})


@router.put(Route.LABEL, response_model=SavedLabel, openapi_extra=_FORM)
async def save(
    request: Request,
    services: Service,
    checks: Checking,
    user: AsAnnotator,
    expected: Expected,
    image: Name,
    tag: Name = "",
) -> JSONResponse:
    """Save a label of an image, durably; earlier states stay as revisions.

    A file that cannot be decoded completely, or does not lie on the image's grid, is refused, and nothing is stored.
    With `If-Match`, 409 if somebody else saved since that revision; the detail says who and when. The response's `ETag`
    is that of the new revision.
    """
    tag = checked_name(tag or FINAL, "tag")
    record = await services.datastore.image(checked_name(image, "image"))
    stage = to_store(services, raw=True)
    async with read_form(request, texts=("params",), files=("label",), stage=stage) as form:
        info = form.json("params")
        staged, ext = await _checked_label(services, checks, form.needed("label"), record)
        model = info.get("model_version")
        try:
            saved = await services.datastore.save_label(
                record.id,
                tag,
                staged,
                ext,
                info=info_of(info),
                author=author_of(user, info),
                model_version=None if model is None else str(model),
                expected=expected,
            )
        finally:
            await asyncio.to_thread(staged.unlink, missing_ok=True)
    about(request, revision=saved.number)
    body = {**await _app_says(services, record.id, tag), **SavedLabel(image=record.id, label=record.id)}
    return JSONResponse(body, headers={"ETag": entity_tag(saved.number)})


async def _app_says(services: Services, image_id: str, tag: str) -> dict[str, Any]:
    """Keys that the app's hook adds to the response. The label is saved: an error in the hook is only logged."""
    try:
        return dict(await services.models.label_saved(image_id, tag))
    except Exception as error:
        logger.error("the app's hook after a save failed: %s", type(error).__name__)
        return {}


async def _checked_label(services: Services, checks: Checks, label: Upload, image: ImageRecord) -> tuple[Path, str]:
    """The checked file to take over, and its extension."""
    ext = extension(label.name, raw=True)
    if ext != RAW:
        await checks.run(check_label, label.path, image.path, services.settings.max_volume)
        return label.path, ext
    target = await services.datastore.stage(".nii.gz")
    await checks.run(label_from_raw, label.path, image.path, target)
    return target, ".nii.gz"


async def _label(services: Services, label: str, tag: str) -> LabelRecord:
    return await services.datastore.label(checked_name(label, "label"), checked_name(tag, "tag"))


async def revision_of(services: Services, label: str, tag: str, number: int) -> Revision:
    """The revision with this number. Raises NotFound."""
    for one in await services.datastore.revisions(checked_name(label, "label"), checked_name(tag, "tag")):
        if one.number == number:
            return one
    raise NotFound(f"no revision {number} of the label {tag!r}: see the list of its revisions")


@router.head(Route.LABEL, response_class=Response)
async def exists(services: Service, user: AsUser, image: Name, tag: Name) -> Response:
    """200 if the image has a label under the tag, else 404."""
    record = await _label(services, image, tag)
    return Response(headers={"ETag": entity_tag(record.number)})


@router.get(Route.LABEL, response_class=Response, responses=FILE)
async def download(services: Service, user: AsUser, label: Name, tag: Name, revision: Number = None) -> Response:
    """The file of the newest revision, or of the one with this number."""
    record: LabelRecord | Revision = await (
        _label(services, label, tag) if revision is None else revision_of(services, label, tag, revision)
    )
    reply = await file_reply(record.path, name=label + record.ext)
    reply.headers["ETag"] = entity_tag(record.number)
    return reply


@router.get(Route.LABEL_REVISIONS)
async def revisions(services: Service, user: AsUser, label: Name, tag: Name) -> list[LabelRevision]:
    """Every saved state of a label, oldest first; also after the label was deleted."""
    saved = await services.datastore.revisions(checked_name(label, "label"), checked_name(tag, "tag"))
    return [
        LabelRevision(number=one.number, ts=one.ts, user=one.user, client_id=one.client_id, info=one.info)
        for one in saved
    ]


@router.post(Route.RESTORE_LABEL, response_model=SavedLabel)
async def restore(
    request: Request,
    services: Service,
    user: AsAnnotator,
    expected: Expected,
    label: Name,
    tag: Name,
    revision: Annotated[int, Query(ge=1)],
) -> JSONResponse:
    """Save an earlier revision again, as the newest one. With `If-Match`, 409 if somebody else saved meanwhile."""
    earlier = await revision_of(services, label, tag, revision)
    staged = await services.datastore.stage(earlier.ext)
    try:
        await asyncio.to_thread(shutil.copyfile, earlier.path, staged)
        saved = await services.datastore.save_label(
            earlier.image_id,
            earlier.tag,
            staged,
            earlier.ext,
            info={**info_of(earlier.info), "restored": revision},
            author=Author(user=user.name),
            model_version=earlier.model_version,
            expected=expected,
        )
    finally:
        await asyncio.to_thread(staged.unlink, missing_ok=True)
    about(request, image=saved.id, revision=saved.number)
    body = {**await _app_says(services, saved.id, saved.tag), **SavedLabel(image=saved.id, label=saved.id)}
    return JSONResponse(body, headers={"ETag": entity_tag(saved.number)})


@router.delete(Route.LABEL)
async def remove(services: Service, user: AsAdmin, expected: Expected, id: Name, tag: Name) -> dict[str, Any]:
    """Remove the label; its revisions stay. Succeeds also if there is none.

    With `If-Match`, 409 if another revision is the newest.
    """
    names = checked_name(id, "label"), checked_name(tag, "tag")
    if expected is None:  # a retry after a fault must not remove what was saved in between
        try:
            expected = (await services.datastore.label(*names)).number
        except NotFound:
            return {}
    await services.datastore.remove_label(*names, expected=expected)
    return {}


@router.get(Route.LABEL_INFO)
async def info(services: Service, user: AsUser, label: Name, tag: Name) -> dict[str, Any]:
    """The label's info; `{}` if there is no label."""
    try:
        return (await _label(services, label, tag)).info
    except NotFound:
        return {}


@router.put(Route.LABEL_INFO, openapi_extra=_INFO)
async def update_info(request: Request, services: Service, user: AsAnnotator, label: Name, tag: Name) -> None:
    """Merge keys into the label's info. The form field is `info`, or `params` from 3D Slicer's Reviewer module."""
    async with read_form(request, texts=("info", "params")) as form:
        keys = info_of(form.json("info" if "info" in form.texts else "params"))
    names = checked_name(label, "label"), checked_name(tag, "tag")
    await services.datastore.update_label_info(*names, {**keys, "user": user.name})


router.add_api_route(Route.UPDATE_LABEL_INFO, update_info, methods=["PUT"], include_in_schema=False)
