"""`/train/`, `/scoring/`, `/batch/infer`: background work. No kind of job exists yet, so nothing ever runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from deployments.access import AsAdmin, AsAnnotator, AsUser, Described
from deployments.problems import problems
from rayapp.errors import Disabled, NotFound
from rayapp.protocol import Path as Route

router = APIRouter(tags=["jobs"], responses=problems(404, 406, 422, 503))

Flag = Annotated[bool, Query()]
Job = dict[str, Any]


def _none(kind: str, *, every: bool, running: bool) -> list[Job]:
    """What to answer while there are no jobs: an empty list, or 404, which clients take for "nothing runs"."""
    if every and not running:
        return []
    raise NotFound(f"No {kind} Tasks " + ("are currently Running" if running else "Found"))


@router.get(Route.TRAIN)
async def trainings(user: AsUser, all: Flag = False, check_if_running: Flag = False) -> Job | list[Job]:
    """The last training, `all`, or the running one; 404 when there is none."""
    return _none("Train", every=all, running=check_if_running)


@router.get(Route.SCORING)
async def scorings(user: AsUser, all: Flag = False, check_if_running: Flag = False) -> Job | list[Job]:
    """The last scoring, `all`, or the running one; 404 when there is none."""
    return _none("Scoring", every=all, running=check_if_running)


@router.get(Route.BATCH)
async def batches(user: AsUser, all: Flag = False, check_if_running: Flag = False) -> Job | list[Job]:
    """The last batch inference, `all`, or the running one; 404 when there is none."""
    return _none("Batch_infer", every=all, running=check_if_running)


@router.delete(Route.TRAIN)
async def stop_training(user: AsAdmin) -> Job | None:
    """Stop the running training; null when nothing runs."""
    return None


@router.delete(Route.SCORING)
async def stop_scoring(user: AsAnnotator) -> Job | None:
    """Stop the running scoring; null when nothing runs."""
    return None


@router.delete(Route.BATCH)
async def stop_batch(user: AsAdmin) -> Job | None:
    """Stop the running batch inference; null when nothing runs."""
    return None


@router.post(Route.TRAIN, include_in_schema=False)
async def train_all(described: Described, user: AsAdmin) -> dict[str, Job]:
    """Train every model that can be trained; by trainer what became of it."""
    trainers = (await described.get())["trainers"]
    return {name: {"result": None, "detail": "training is not available yet"} for name in trainers}


@router.post(Route.TRAIN_MODEL)
async def train(model: str, described: Described, user: AsAdmin) -> Job:
    """Train a model."""
    await described.known("trainers", "trainer", model)
    raise Disabled("training is not available yet")


@router.post(Route.SCORING, include_in_schema=False)
async def score_all(described: Described, user: AsAnnotator) -> dict[str, Job]:
    """Run every scoring method; by method what became of it."""
    methods = (await described.get())["scoring"]
    return {name: {"result": None, "detail": "scoring is not available yet"} for name in methods}


@router.post(Route.SCORING_METHOD)
async def score(method: str, described: Described, user: AsAnnotator) -> Job:
    """Run a scoring method."""
    await described.known("scoring", "scoring method", method)
    raise Disabled("scoring is not available yet")


@router.post(Route.BATCH_MODEL)
async def batch(model: str, described: Described, user: AsAdmin) -> Job:
    """Run a model on many images."""
    await described.known("models", "model", model)
    raise Disabled("batch inference is not available yet: ask POST /infer/ image by image")
