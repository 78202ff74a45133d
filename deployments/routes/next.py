"""`POST /activelearning/{strategy}`: the next image to label."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from deployments.access import AsUser, Described, Service
from deployments.forms import describe_json, read_json
from deployments.problems import problems
from deployments.uploads import author_of
from rayapp.active_learning.strategies import HOLDER
from rayapp.protocol import Route
from rayapp.serving.messages import HandedOut

router = APIRouter(tags=["active learning"], responses=problems(400, 404, 413, 503))


@router.post(Route.NEXT, openapi_extra=describe_json("The strategy's options, and `client_id`."))
async def next_image(
    strategy: str, request: Request, services: Service, described: Described, user: AsUser
) -> dict[str, Any]:
    """The next image by this strategy, with `id`, `path` and its info; `{}` if none is left.

    The caller (user and `client_id`) has a lease on it for half an hour, and longer while they work on it.
    """
    known = await described.known("strategies", "strategy", strategy)
    asked = await read_json(request)
    client_id = author_of(user, asked).client_id
    holder = f"{user.name}/{client_id or ''}"  # without a client id all programs of a user count as one
    answer = await services.models.next_image(known, {**asked, HOLDER: holder})
    if answer:
        services.inference.prefetch(HandedOut(key=answer["id"], user=user.name, client_id=client_id))
    return answer
