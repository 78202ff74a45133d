"""`/scoring/{method}/…`: maps of where a model is uncertain."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response

from deployments.access import AsUser, Described, Service
from deployments.problems import problems
from deployments.replies import FILE, OCTETS, disposition, file_reply
from rayapp.active_learning import score_files
from rayapp.errors import NotFound
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.protocol import Route, checked_name

router = APIRouter(tags=["active learning"], responses=problems(400, 404, 422, 503))


class Extension(StrEnum):
    """File formats of a map."""

    NIFTI = ".nii.gz"
    NRRD = ".nrrd"


@router.get(Route.UNCERTAINTY, response_class=Response, responses=FILE)
async def uncertainty(
    method: str,
    services: Service,
    described: Described,
    user: AsUser,
    image: Annotated[str, Query()],
    ext: Annotated[Extension, Query()] = Extension.NIFTI,
) -> Response:
    """The newest uncertainty map of an image, on its grid: uint8, 255 where all structures are equally likely."""
    name = await described.known("scoring", "scoring method", method)
    record = await services.datastore.image(checked_name(image, "image"))
    path = score_files.uncertainty_file(services.settings.studies, name, record.id)
    if not await asyncio.to_thread(path.is_file):
        raise NotFound(f"image {record.id!r} was not scored by {name!r} yet: start with POST /scoring/{name}")
    shown = f"{record.id}.{name}{ext}"
    if ext is Extension.NIFTI:
        return await file_reply(path, name=shown)
    body = await asyncio.to_thread(_nrrd, path, services.settings.max_volume)
    return Response(body, media_type=OCTETS, headers={"Content-Disposition": disposition("attachment", shown)})


def _nrrd(path: Path, max_bytes: int) -> bytes:
    levels = read_segmentation(path, max_bytes=max_bytes)
    return encode_segmentation(levels, Extension.NRRD, dtype=np.dtype(np.uint8))


@router.get(Route.UNCERTAIN_SLICES)
async def slices(
    method: str, services: Service, described: Described, user: AsUser, image: Annotated[str, Query()]
) -> dict[str, list[int]]:
    """The most uncertain slices across the image's axes `i`, `j` and `k`, most uncertain first."""
    name = await described.known("scoring", "scoring method", method)
    record = await services.datastore.image(checked_name(image, "image"))
    ranked: dict[str, Any] | None = record.info.get(f"{name}_slices")
    if ranked is None:
        raise NotFound(f"image {record.id!r} was not scored by {name!r} yet: start with POST /scoring/{name}")
    return {axis: [int(at) for at in ranked[axis]] for axis in "ijk"}
