"""Background jobs: `/train/`, `/scoring/` and `/batch/infer` as in MONAI Label, and `/jobs`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deployments.access import AsAdmin, AsAnnotator, AsUser, Described, Service
from deployments.forms import describe_json, read_json
from deployments.problems import problems
from deployments.replies import file_reply
from deployments.services import Services
from deployments.streams import EVENT_STREAM, KEEP_ALIVE, LastEvent, digest_of, event_stream, server_sent_event
from deployments.submissions import submit
from deployments.train_options import check_train_options
from rayapp import responses
from rayapp.datastore.job_record import Job, State
from rayapp.errors import BadRequest, Busy, Conflict, NotFound, RayappError
from rayapp.jobs.training_job import run_folder
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.protocol import ORIGINAL, JobKind, Route, StreamEvent, checked_name
from rayapp.users import User

router = APIRouter(tags=["jobs"], responses=problems(400, 404, 406, 409, 413, 422, 429, 503))

Flag = Annotated[bool, Query()]
OneOrAll = responses.Job | list[responses.Job]
Submitted = dict[str, responses.SubmittedJob]
"""By trainer or method, the job or the reason why it was refused."""
Stats = dict[str, Any]
"""Answer of `run_sync`: the job's result."""

STOPS_S = 15.0
"""Seconds that a request to stop a job waits for its end; the job ends anyway."""
POLL_S = 0.5
HEARTBEAT_S = 10.0
STREAMS = 100
"""Clients of one gateway that may follow jobs at the same time."""
FILES = {".png": "image/png", ".html": "text/html", ".csv": "text/csv"}
"""Media type by extension of the files that a job makes for people."""
_OPTIONS = describe_json("The trainer's options, as /info/ lists them with their defaults.")
_SCORING = describe_json("The method's options, as /info/ lists them; `images` (`unlabeled`, `labeled`, `all`).")
_BATCH = describe_json("`label_tag` (`original`), `max_batch_size`, and the model's options.")
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "`event: job` with the job as JSON, at each change.", "content": {EVENT_STREAM: {}}}
}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {media_type: {} for media_type in FILES.values()}}
}


async def _tasks(services: Services, kind: JobKind, *, every: bool, running: bool) -> OneOrAll:
    """The last job submitted, all, or the running one. Raises NotFound if there is none: "nothing runs" to clients."""
    if running:
        job = await services.jobs.running(kind)
        if job is None:
            raise NotFound(f"No {kind.monai_label} Tasks are currently Running")
        return job.as_json()
    jobs = await services.jobs.jobs(kind)
    if every:
        return [job.as_json() for job in jobs]
    if not jobs:
        raise NotFound(f"No {kind.monai_label} Tasks Found")
    return jobs[-1].as_json()


async def _stop(services: Services, kind: JobKind) -> responses.Job | None:
    job = await services.jobs.running(kind)
    if job is None:
        return None
    await services.jobs.cancel(job.id)  # by its id: a retry must not stop the next job
    return (await _ended(services, job.id, STOPS_S)).as_json()


async def _ended(services: Services, job_id: str, seconds: float) -> Job:
    """The job once it is over, or as it is after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        job = await services.jobs.job(job_id)
        if job.over or asyncio.get_running_loop().time() > deadline:
            return job
        await asyncio.sleep(POLL_S / 2)


async def _submit(
    services: Services, user: User, kind: JobKind, name: str, params: Mapping[str, Any], *, enqueue: bool
) -> Job:
    named = {"model": name, **params} if kind is JobKind.SCORING else {**params, "model": name}
    withdrawals = Withdrawals.of(services.settings.workspace)
    return await submit(services.jobs, withdrawals, kind, name, named, user=user.name, enqueue=enqueue)


@router.get(Route.TRAIN)
async def trainings(services: Service, user: AsUser, all: Flag = False, check_if_running: Flag = False) -> OneOrAll:
    """The last training, `all`, or with `check_if_running` the running one; 404 if there is none."""
    return await _tasks(services, JobKind.TRAIN, every=all, running=check_if_running)


@router.get(Route.SCORING)
async def scorings(services: Service, user: AsUser, all: Flag = False, check_if_running: Flag = False) -> OneOrAll:
    """The last scoring, `all`, or with `check_if_running` the running one; 404 if there is none."""
    return await _tasks(services, JobKind.SCORING, every=all, running=check_if_running)


@router.get(Route.BATCH)
async def batches(services: Service, user: AsUser, all: Flag = False, check_if_running: Flag = False) -> OneOrAll:
    """The last batch inference, `all`, or with `check_if_running` the running one; 404 if there is none."""
    return await _tasks(services, JobKind.BATCH, every=all, running=check_if_running)


@router.delete(Route.TRAIN)
async def stop_training(services: Service, user: AsAdmin) -> responses.Job | None:
    """Stop the running training; null if none runs."""
    return await _stop(services, JobKind.TRAIN)


@router.delete(Route.SCORING)
async def stop_scoring(services: Service, user: AsAnnotator) -> responses.Job | None:
    """Stop the running scoring; null if none runs."""
    return await _stop(services, JobKind.SCORING)


@router.delete(Route.BATCH)
async def stop_batch(services: Service, user: AsAdmin) -> responses.Job | None:
    """Stop the running batch inference; null if none runs."""
    return await _stop(services, JobKind.BATCH)


@router.post(Route.TRAIN, include_in_schema=False)
async def train_all(request: Request, services: Service, described: Described, user: AsAdmin) -> Submitted:
    """Submit a training of every trainer; they run one after another. Returns the outcome by trainer.

    400, and nothing is submitted, if an option is one that no trainer has, or that the trainer it is for does not have.
    """
    body = await read_json(request)
    trainers = (await described.get())["trainers"]
    for name, trainer in trainers.items():
        own = body.get(name)
        check_train_options(name, own if isinstance(own, dict) else {}, trainer["config"])
    every = {option for trainer in trainers.values() for option in trainer["config"]}
    check_train_options(", ".join(trainers), body.keys() - trainers.keys(), sorted(every))
    return await _submit_all(services, user, JobKind.TRAIN, trainers, body)


async def _submit_all(
    services: Services, user: User, kind: JobKind, names: Iterable[str], body: Mapping[str, Any]
) -> Submitted:
    answers: Submitted = {}
    for name in names:
        own = body.get(name)
        params = {**(own if isinstance(own, dict) else {}), **body}
        try:
            job = await _submit(services, user, kind, name, params, enqueue=True)
            answers[name] = {"result": job.as_json(), "detail": None}
        except RayappError as error:
            answers[name] = {"result": None, "detail": error.detail}
    return answers


@router.post(Route.TRAIN_MODEL, openapi_extra=_OPTIONS)
async def train(
    model: str,
    request: Request,
    services: Service,
    described: Described,
    user: AsAdmin,
    run_sync: Flag = False,
    enqueue: Flag = False,
) -> responses.Job | Stats:
    """Train a model. While another training runs, 429, or with `enqueue` it waits its turn. `run_sync` waits for the
    end and returns its statistics. An option that the trainer does not have is a 400."""
    name, options = await described.known("trainers", "trainer", model), await read_json(request)
    check_train_options(name, options, (await described.get())["trainers"][name]["config"])
    job = await _submit(services, user, JobKind.TRAIN, name, options, enqueue=enqueue)
    if not run_sync:
        return job.as_json()
    return (await _done(services, job)).train_stats()


async def _done(services: Services, job: Job) -> Job:
    """The job once it is done. Raises Conflict if it fails or is stopped."""
    job = await _ended(services, job.id, float("inf"))
    if job.state is not State.DONE:
        raise Conflict(f"the {job.kind.display_name} ended as {job.state}: {job.details[-1]}")
    return job


@router.post(Route.SCORING, include_in_schema=False)
async def score_all(request: Request, services: Service, described: Described, user: AsAnnotator) -> Submitted:
    """Submit a scoring by every method; they run one after another. Returns the outcome by method."""
    body = await read_json(request)
    return await _submit_all(services, user, JobKind.SCORING, (await described.get())["scoring"], body)


@router.post(Route.SCORING_METHOD, openapi_extra=_SCORING)
async def score(
    method: str,
    request: Request,
    services: Service,
    described: Described,
    user: AsAnnotator,
    run_sync: Flag = False,
    enqueue: Flag = False,
) -> responses.Job | Stats:
    """Score images. While another scoring runs, 429, or with `enqueue` it waits its turn. `run_sync` waits for the end
    and returns the counts."""
    name = await described.known("scoring", "scoring method", method)
    job = await _submit(services, user, JobKind.SCORING, name, await read_json(request), enqueue=enqueue)
    if not run_sync:
        return job.as_json()
    return dict((await _done(services, job)).result)


@router.post(Route.BATCH_MODEL, openapi_extra=_BATCH)
async def batch(
    model: str,
    request: Request,
    services: Service,
    described: Described,
    user: AsAdmin,
    images: str = "all",
    run_sync: Flag = False,
    enqueue: Flag = False,
) -> responses.Job | Stats:
    """Label `images` (`all`, `labeled` or `unlabeled`) with a model. While another batch runs, 429, or with `enqueue`
    it waits its turn. `run_sync` waits for the end and returns the saved labels by image."""
    name = await described.known("models", "model", model)
    body = {**await read_json(request), "images": images}
    job = await _submit(services, user, JobKind.BATCH, name, body, enqueue=enqueue)
    if not run_sync:
        return job.as_json()
    done = await _done(services, job)
    document = await services.datastore.document()
    return {**{image: {} for image in done.result["failed"]}, **_saved_by(done, document)}


def _saved_by(job: Job, document: dict[str, Any]) -> Stats:
    """Labels that a batch saved, by image, as MONAI Label answers them."""
    tag = str(job.request.get("label_tag") or ORIGINAL)
    infos = {image: entry["labels"].get(tag, {}).get("info", {}) for image, entry in document["objects"].items()}
    return {
        image: {"label": image, "tag": tag, "params": info.get("params", {})}
        for image, info in infos.items()
        if info.get("job") == job.id
    }


@router.get(Route.JOBS)
async def jobs(services: Service, user: AsUser) -> list[responses.Job]:
    """All jobs of every kind, oldest first."""
    return [job.as_json() for job in await services.jobs.jobs()]


@router.get(Route.JOB)
async def job(job_id: str, services: Service, user: AsUser) -> responses.Job:
    """One job, with the names of its pictures and of its report in `files`."""
    job = await services.jobs.job(checked_name(job_id, "job"))
    return {**job.as_json(), "files": await asyncio.to_thread(_files, run_folder(services.settings, job.id))}


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix in FILES)


@router.delete(Route.JOB)
async def cancel(job_id: str, services: Service, user: AsAdmin) -> responses.Job:
    """Stop a job that is queued or running."""
    await services.jobs.cancel(checked_name(job_id, "job"))
    return (await _ended(services, job_id, STOPS_S)).as_json()


@router.get(Route.JOB_EVENTS, response_class=Response, responses=_EVENTS)
async def events(
    job_id: str,
    request: Request,
    services: Service,
    user: AsUser,
    last_event: LastEvent = "",
) -> Response:
    """The job at each change, as server-sent events, until it is over.

    Each event is the whole job, with all its details, and its id identifies this state: a client that reconnects with
    `Last-Event-ID` gets the job only if it has changed since. 204 tells browsers to stop reconnecting.
    """
    first = await services.jobs.job(checked_name(job_id, "job"))
    if first.over and digest_of(first.as_json()) == last_event:
        return Response(status_code=204)
    state = request.app.state
    if getattr(state, "streams", 0) >= STREAMS:
        raise Busy("too many clients are following jobs: poll GET /jobs instead")
    return event_stream(_follow(services, state, first, last_event))


async def _follow(services: Services, state: Any, job: Job, sent: str) -> AsyncIterator[bytes]:
    """Events of a job; `sent` is the id of the one that the client has."""
    state.streams = getattr(state, "streams", 0) + 1
    try:
        silent = 0.0
        while True:
            current = job.as_json()
            if (state_id := digest_of(current)) != sent:
                sent, silent = state_id, 0.0
                yield server_sent_event(StreamEvent.JOB, current, id=state_id)
            elif silent >= HEARTBEAT_S:
                silent = 0.0
                yield KEEP_ALIVE
            if job.over:
                return
            await asyncio.sleep(POLL_S)
            silent += POLL_S
            job = await _again(services, job)
    finally:
        state.streams -= 1


async def _again(services: Services, job: Job) -> Job:
    """The job as it is now; unchanged while the jobs actor restarts."""
    try:
        return await services.jobs.job(job.id)
    except Busy:
        return job


@router.get(Route.JOB_FILE, response_class=Response, responses=_FILE)
async def file(job_id: str, name: str, services: Service, user: AsUser) -> Response:
    """A file of the job: its learning curves, a validation image with the prediction on it, and of a training that has
    ended `report.html`, a page of its result, and `cases.csv`, the scores of each validation image."""
    media_type = FILES.get(Path(checked_name(name, "file")).suffix)
    if media_type is None:
        raise BadRequest(f"the name of a job's file must end in {', '.join(FILES)}")
    path = run_folder(services.settings, checked_name(job_id, "job")) / name
    return await file_reply(path, name=None, media_type=media_type)
