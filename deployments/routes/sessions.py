"""`/session/`: images that a client sends for a while, without storing them."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.access import AsUser, Checking, Service
from deployments.forms import describe_form, missing, read_form
from deployments.problems import problems
from deployments.replies import FILE, file_reply
from rayapp.datastore.sessions import base_name
from rayapp.protocol import Route
from rayapp.responses import Session, SessionInfo
from rayapp.serving.messages import HandedOut

router = APIRouter(tags=["sessions"], responses=problems(400, 404, 413, 422, 503))

_FORM = describe_form(
    texts={},
    files={"files": "An image, or the files of a DICOM series; with `uncompress` one archive."},
    needed=["files"],
)


@router.put(Route.SESSIONS, response_model=Session, openapi_extra=_FORM)
async def create(
    request: Request,
    services: Service,
    checks: Checking,
    user: AsUser,
    uncompress: Annotated[bool, Query()] = False,
    expiry: Annotated[int, Query(ge=0)] = 0,
) -> JSONResponse:
    """Send an image: one file, the files of a DICOM series, or with `uncompress` an archive of them.

    It is decoded before it is acknowledged. `expiry` is in seconds without use; 0 is the server's own, which is also
    the maximum.
    """
    folder = await services.sessions.stage()
    names: Counter[str] = Counter()

    async def stage(filename: str) -> Path:
        # Series exported from several folders repeat file names, which mean nothing.
        name = base_name(filename.lstrip(".") or "image")
        names[name] += 1
        return folder / (name if names[name] == 1 else f"{names[name]}-{name}")

    try:
        async with read_form(request, files=("files",), stage=stage) as form:
            if not form.files:
                raise missing("files")
            async with checks.place():
                created = await services.sessions.create(folder, uncompress=uncompress, expiry=expiry)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    info = created["session_info"]
    key, path = f"session/{created['session_id']}", Path(info["path"]) / info["image"]
    services.inference.prefetch(HandedOut(key=key, path=path, user=user.name))
    return JSONResponse(created)


@router.get(Route.SESSION, response_model=SessionInfo, responses={200: {"content": FILE[200]["content"]}})
async def session(
    session_id: str,
    services: Service,
    user: AsUser,
    update_ts: Annotated[bool, Query()] = False,
    image: Annotated[bool, Query()] = False,
) -> Response:
    """The session's info, or with `image` its file. `update_ts` counts as a use and postpones its expiry."""
    if not image:
        return JSONResponse(await services.sessions.get(session_id, touch=update_ts))
    path = await services.sessions.image(session_id)
    return await file_reply(path, name=path.name)


@router.delete(Route.SESSION, response_model=SessionInfo)
async def remove(session_id: str, services: Service, user: AsUser) -> JSONResponse:
    """Remove the session; returns its last info."""
    return JSONResponse(await services.sessions.remove(session_id))
