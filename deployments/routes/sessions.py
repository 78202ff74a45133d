"""`/session/`: images that a client brings for a while."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse

from deployments.access import AsUser, Service
from deployments.uploads import checked
from rayapp.errors import NotFound
from rayapp.protocol import Path as Route

router = APIRouter(tags=["sessions"])


@router.put("/session", include_in_schema=False)
@router.put(Route.SESSIONS)
async def create(
    services: Service,
    user: AsUser,
    files: Annotated[list[UploadFile], File()],
    uncompress: Annotated[bool, Query()] = False,
    expiry: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """Bring an image: one file, several DICOM files, or with `uncompress` an archive of them."""
    folder: Path = await services.sessions.stage()
    try:
        for file in files:
            await asyncio.to_thread(_copy, file, folder)
        created: dict[str, Any] = await services.sessions.create(folder, uncompress=uncompress, expiry=expiry)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return created


def _copy(upload: UploadFile, folder: Path) -> None:
    name = (upload.filename or "").replace("\\", "/").rsplit("/", 1)[-1].lstrip(".")
    with (folder / (name or "image")).open("xb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


@router.get(Route.SESSION, response_class=Response)
async def session(
    session_id: str,
    services: Service,
    user: AsUser,
    update_ts: Annotated[bool, Query()] = False,
    image: Annotated[bool, Query()] = False,
) -> Response:
    """The session's info, or with `image` its file."""
    if not image:
        return JSONResponse(await services.sessions.get(session_id, touch=update_ts))
    path: Path = await services.sessions.image(session_id)
    if await checked(path.is_dir):
        raise NotFound("the session's image is a folder of DICOM files and has no single file")
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.delete(Route.SESSION)
async def remove(session_id: str, services: Service, user: AsUser) -> dict[str, Any]:
    """Remove it; its last info."""
    removed: dict[str, Any] = await services.sessions.remove(session_id)
    return removed
