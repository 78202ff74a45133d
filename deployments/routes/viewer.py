"""`/viewer`: routes for our OHIF extension: the image behind a DICOM series with its voxel grid, and labels as packed
masks.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from deployments.access import AllSeries, AsUser, Checking, Service
from deployments.problems import problems
from deployments.routes.labels import revision_of
from rayapp.datastore.interfaces import NOT_STORABLE, ImageRecord, LabelRecord, Revision
from rayapp.errors import BadRequest
from rayapp.imaging import mask_codec
from rayapp.imaging.dicom_instances import uid_of
from rayapp.imaging.label_names import with_names
from rayapp.imaging.placement import on_grid
from rayapp.imaging.reader import read_grid, read_segmentation
from rayapp.protocol import MASK_MEDIA_TYPE, PARAMS_HEADER, Route, checked_name
from rayapp.responses import ViewerImage

router = APIRouter(tags=["viewer"], responses=problems(400, 404, 413, 422, 503))


@router.get(Route.VIEWER_IMAGE)
async def image(
    services: Service,
    checks: Checking,
    store: AllSeries,
    user: AsUser,
    series: Annotated[str, Query()] = "",
    image: Annotated[str, Query()] = "",
) -> ViewerImage:
    """The image with this `series` UID, or with the id `image`."""
    if not series and not image:
        raise BadRequest("no image given: send `series` or `image` in the query")
    archive = bool(services.settings.dicomweb.url)  # whose images are its series
    record: ImageRecord = await (
        store.image_of(series)
        if series and not archive
        else services.datastore.image(checked_name(image or series, "image"))
    )
    grid = await checks.run(read_grid, record.path)
    return ViewerImage(
        image=record.id,
        study=str(record.info.get("StudyInstanceUID")) if archive else uid_of("study", record.id),
        series=record.id if archive else uid_of("series", record.id),
        shape=grid.shape,
        affine=grid.affine.tolist(),
        labels=list(await services.datastore.labels(record.id)),
        not_storable=str(record.info.get(NOT_STORABLE, "")),
    )


@router.get(
    Route.VIEWER_LABEL,
    response_class=Response,
    responses={200: {"description": "The label map as a packed mask.", "content": {MASK_MEDIA_TYPE: {}}}},
)
async def label(
    services: Service,
    checks: Checking,
    user: AsUser,
    image: Annotated[str, Query()],
    tag: Annotated[str, Query()],
    revision: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """A label on its image's grid, as it is or as of a revision. The params in the header have its info, the `number`
    of the revision, and the values by name, as its file or its info gives them."""
    record = await services.datastore.image(checked_name(image, "image"))
    label: LabelRecord | Revision = await (
        services.datastore.label(record.id, checked_name(tag, "tag"))
        if revision is None
        else revision_of(services, record.id, tag, revision)
    )
    body, names = await checks.run(_packed, record, label, services.settings.max_volume)
    params: dict[str, Any] = {"label_names": names, "info": label.info, "number": label.number}
    return Response(body, media_type=MASK_MEDIA_TYPE, headers={PARAMS_HEADER: json.dumps(params)})


def _packed(record: ImageRecord, label: LabelRecord | Revision, max_bytes: int) -> tuple[bytes, dict[str, int]]:
    placed = on_grid(read_segmentation(label.path, max_bytes=max_bytes), read_grid(record.path), label.ext)
    return mask_codec.encode(placed.array), with_names(placed, label.info).names
