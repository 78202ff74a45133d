"""`/datastore/`: the whole store: counts, training list, document, and the zip of finished pairs."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from deployments.access import AsAnnotator, AsUser, Service
from rayapp.protocol import Path as Route

router = APIRouter(tags=["datastore"])


class View(StrEnum):
    """What `output` may ask for."""

    STATS = "stats"
    TRAIN = "train"
    ALL = "all"


@router.get("/datastore", include_in_schema=False)
@router.get(Route.DATASTORE, responses={200: {"content": {"application/json": {}}}}, response_class=Response)
async def datastore(services: Service, user: AsUser, output: Annotated[View, Query()] = View.STATS) -> Response:
    """Counts (`stats`), image and label paths of finished images (`train`), or every object with its info (`all`)."""
    store = services.datastore
    ask = {View.STATS: store.status, View.TRAIN: store.datalist, View.ALL: store.document}[output]
    found = await ask()
    # At 100,000 images the text takes long to make.
    return Response(await asyncio.to_thread(json.dumps, found), media_type="application/json")


@router.get(Route.DATASET, response_class=FileResponse)
async def dataset(
    services: Service,
    user: AsAnnotator,
    limit_cases: Annotated[int | None, Query(ge=1)] = None,
) -> FileResponse:
    """A zip of the images with a `final` label, and the labels."""
    target: Path = await services.datastore.stage(".zip")
    clean = BackgroundTask(target.unlink, missing_ok=True)
    try:
        await services.datastore.archive(target, limit=limit_cases)
    except BaseException:
        await clean()
        raise
    return FileResponse(target, media_type="application/zip", filename="dataset.zip", background=clean)
