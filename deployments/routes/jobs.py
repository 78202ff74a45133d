"""`/train/`, `/scoring/`, `/batch/infer`: background work. No kind of job exists yet, so nothing ever runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from deployments.access import AsAdmin, AsAnnotator, AsUser, Service
from rayapp.errors import NotFound
from rayapp.protocol import Path as Route

router = APIRouter(tags=["jobs"])

_KINDS = ((Route.TRAIN, "Train"), (Route.SCORING, "Scoring"), (Route.BATCH, "Batch_infer"))


def _status(kind: str) -> Any:
    async def status(
        user: AsUser,
        all: Annotated[bool, Query()] = False,
        check_if_running: Annotated[bool, Query()] = False,
    ) -> list[dict[str, Any]]:
        """The last job, all of them, or the running one; 404 when there is none."""
        if all:
            return []
        which = "are currently Running" if check_if_running else "Found"
        raise NotFound(f"No {kind} Tasks {which}")

    return status


async def _stop_as_admin(user: AsAdmin) -> None:
    """Stop the running job; null when nothing runs."""


async def _stop_as_annotator(user: AsAnnotator) -> None:
    """Stop the running job; null when nothing runs."""


for _path, _kind in _KINDS:
    router.add_api_route(_path, _status(_kind), methods=["GET"], name=f"{_kind} status")
    _stop = _stop_as_annotator if _path is Route.SCORING else _stop_as_admin
    router.add_api_route(_path, _stop, methods=["DELETE"], name=f"stop {_kind}")


@router.post(Route.TRAIN, include_in_schema=False)
async def train_all(services: Service, user: AsAdmin) -> dict[str, Any]:
    """Train every model that can be trained; none can yet."""
    described = await services.models.describe()
    return {name: {"result": None, "detail": "training is not available yet"} for name in described["trainers"]}


@router.post(Route.TRAIN_MODEL)
async def train(model: str, services: Service, user: AsAdmin) -> dict[str, Any]:
    """Train a model."""
    described = await services.models.describe()
    raise NotFound(f"no trainer {model!r}; there are: {', '.join(described['trainers']) or 'none'}")


@router.post(Route.SCORING, include_in_schema=False)
async def score_all(user: AsAnnotator) -> dict[str, Any]:
    """Run every scoring method; there is none yet."""
    return {}


@router.post(Route.SCORING_METHOD)
async def score(method: str, services: Service, user: AsAnnotator) -> dict[str, Any]:
    """Run a scoring method."""
    described = await services.models.describe()
    raise NotFound(f"no scoring method {method!r}; there are: {', '.join(described['scoring']) or 'none'}")


@router.post(Route.BATCH_MODEL)
async def batch(model: str, user: AsAdmin) -> dict[str, Any]:
    """Run a model on many images."""
    raise NotFound(f"batch inference is not available yet; ask `POST /infer/{model}` image by image")
