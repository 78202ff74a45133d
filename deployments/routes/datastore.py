"""`/datastore/`: the whole store: counts, training list, document, and a zip of the labelled images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from deployments.access import AsAnnotator, AsUser, Service
from deployments.problems import problems
from deployments.replies import file_reply
from rayapp.protocol import Route
from rayapp.responses import DatastoreStatus

router = APIRouter(tags=["datastore"], responses=problems(404, 422, 503))


class View(StrEnum):
    """Views of the datastore."""

    STATS = "stats"
    TRAIN = "train"
    ALL = "all"


@router.get(Route.DATASTORE, response_model=DatastoreStatus | list[dict[str, str]] | dict[str, Any])
async def datastore(services: Service, user: AsUser, output: Annotated[View, Query()] = View.STATS) -> Response:
    """Counts (`stats`), paths of labelled images with their labels (`train`), or all objects with infos (`all`)."""
    store = services.datastore
    views: dict[View, Callable[[], Awaitable[object]]] = {
        View.STATS: store.status,
        View.TRAIN: store.datalist,
        View.ALL: store.document,
    }
    view = await views[output]()
    # Encoding takes long with 100,000 images.
    return Response(await asyncio.to_thread(json.dumps, view), media_type="application/json")


@router.get(Route.DATASET, response_class=Response, responses={200: {"content": {"application/zip": {}}}})
async def dataset(
    services: Service, user: AsAnnotator, limit_cases: Annotated[int | None, Query(ge=1)] = None
) -> Response:
    """A zip of the images that have a `final` label, with these labels."""
    target = await services.datastore.stage(".zip")
    try:
        await services.datastore.archive(target, limit=limit_cases)
        return await file_reply(target, name="dataset.zip", media_type="application/zip", remove=True)
    except BaseException:
        await asyncio.to_thread(target.unlink, missing_ok=True)
        raise
