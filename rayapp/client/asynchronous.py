"""AsyncClient: every route of the server as a coroutine.

Belongs to one event loop; its calls may run side by side. Large bodies are streamed from and to files. Coordinates are
voxel indices [i, j, k] of the image as its file lays it out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from rayapp.client.answers import read_infer
from rayapp.client.prompting import AsyncInteraction
from rayapp.client.results import InferResult
from rayapp.client.transport import (
    ATTEMPTS,
    Call,
    Transport,
    Unreachable,
    events,
    read_file,
    read_json,
    read_nothing,
    read_text,
    target_of,
)
from rayapp.errors import Busy, NotFound
from rayapp.protocol import FINAL, JobKind, Output, Route
from rayapp.responses import (
    DatastoreStatus,
    Info,
    InteractionState,
    Job,
    ModelFile,
    Sample,
    SavedLabel,
    Session,
    SessionInfo,
    UserInfo,
    Versions,
)

Params = Mapping[str, Any]


_JOBS_OF = {JobKind.TRAIN: Route.TRAIN, JobKind.SCORING: Route.SCORING, JobKind.BATCH: Route.BATCH}


class AsyncClient:
    """A client of one server; use it as `async with AsyncClient(url) as client`.

    Every method raises the error of `rayapp.errors` that the server answered, with its words, or `Unreachable`.
    Calls that change nothing are repeated, a few times and ever later, when the connection fails or the server is
    busy; so are the turns of an interaction, which count once; an inference is repeated only when the server turned it
    away; nothing else is ever sent twice.
    """

    def __init__(
        self, url: str, *, token: str | None = None, client_id: str | None = None, timeout: float = 600
    ) -> None:
        """`client_id` names this annotator's program; a newer click of the same one replaces its older one still
        queued. `timeout` is how many seconds the server may stay silent."""
        self._transport = Transport(url, token=token, timeout=timeout)
        self._client_id = client_id

    async def __aenter__(self) -> AsyncClient:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    # The server

    async def info(self) -> Info:
        """What the server serves: models, labels, strategies, progress."""
        return cast(Info, await self._get(Route.INFO))

    async def reload(self) -> None:
        """Let the server make its app anew."""
        await self._send("POST", Route.RELOAD)

    async def logs(self, *, lines: int = 300) -> str:
        """The last lines of the server's log."""
        call = Call(method="GET", path=Route.LOGS, query={"lines": str(lines), "html": "false", "text": "true"})
        return await self._transport.send(call, read_text)

    async def gpu(self) -> str:
        """What the server's GPU tool prints."""
        return await self._transport.send(Call(method="GET", path=Route.LOGS_GPU), read_text)

    async def whoami(self) -> UserInfo:
        """The user that the token belongs to, with roles. Raises NotFound on a server without authentication."""
        return cast(UserInfo, await self._get(Route.AUTH_VALID))

    # Inference

    async def infer(
        self,
        model: str,
        image: str = "",
        *,
        params: Params | None = None,
        session: str | None = None,
        file: Path | None = None,
        label: Path | None = None,
        output: Output = Output.ALL,
        to: Path | None = None,
    ) -> InferResult:
        """Run a model on a stored image, a session's, or the image in `file`.

        `params` holds clicks by label name and options; `label` is a mask to start from (scribbles); `to` a file, or
        a folder, to stream the mask to.
        """
        query = {"image": image, "session_id": session or "", "output": "" if output is Output.ALL else output.value}
        files = [(name, path) for name, path in (("file", file), ("label", label)) if path is not None]
        call = Call(
            method="POST",
            path=Route.INFER.filled(model=model),
            query={name: value for name, value in query.items() if value},
            form={"params": json.dumps(self._signed(params))},
            files=files,
            replayable=True,
        )
        return await self._transport.send(call, read_infer(to))

    async def infer_box(
        self, model: str, image: str = "", *, params: Params | None = None, session: str | None = None
    ) -> InferResult:
        """As `infer`, with the mask as its changed box in packed bits: the quickest way; read it with `labels()`."""
        return await self.infer(model, image, params=params, session=session, output=Output.BOX)

    async def open_interaction(self, model: str, image: str) -> AsyncInteraction:
        """Start to work on a stored image with a model, prompt by prompt."""
        opened = await self._send("POST", Route.INTERACTIONS, json=self._signed({"model": model, "image": image}))
        return await self.interaction(opened["id"])

    async def interaction(self, interaction: str) -> AsyncInteraction:
        """Go on with an interaction, on whichever machine; its mask is fetched with the first prompt, or `mask()`."""
        path = Route.INTERACTION.filled(interaction_id=interaction)
        state = cast(InteractionState, await self._get(path))
        return AsyncInteraction(self._transport, state, client_id=self._client_id)

    async def interactions(self, image: str, *, user: str = "") -> list[InteractionState]:
        """An image's interactions, oldest first: one's own, or for reviewers those of another user."""
        query = {"image": image, "user": user} if user else {"image": image}
        return cast("list[InteractionState]", await self._get(Route.INTERACTIONS, **query))

    # Choosing images

    async def next_sample(self, strategy: str, *, params: Params | None = None) -> Sample | None:
        """The image to label next; None when none is left."""
        found = await self._send("POST", Route.NEXT.filled(strategy=strategy), json=self._signed(params))
        return cast(Sample, found) if found else None

    async def uncertainty(self, method: str, image: str, to: Path, *, ext: str = ".nii.gz") -> Path:
        """Where the model is unsure of an image, on the image's grid (255 at most), to the file or folder `to`."""
        return await self._download(Route.UNCERTAINTY.filled(method=method), to, image=image, ext=ext)

    async def uncertain_slices(self, method: str, image: str) -> dict[str, list[int]]:
        """The slices most worth looking at across the image's i, j and k, worst first."""
        return cast("dict[str, list[int]]", await self._get(Route.UNCERTAIN_SLICES.filled(method=method), image=image))

    # The datastore

    async def datastore(self) -> DatastoreStatus:
        """How much there is and how much is done."""
        return cast(DatastoreStatus, await self._get(Route.DATASTORE))

    async def datalist(self) -> list[dict[str, str]]:
        """The server's paths of images that have a final label, with it: what training uses."""
        return cast("list[dict[str, str]]", await self._get(Route.DATASTORE, output="train"))

    async def document(self) -> dict[str, Any]:
        """All images and labels with their infos, as `datastore_v2.json` holds them."""
        return cast("dict[str, Any]", await self._get(Route.DATASTORE, output="all"))

    async def dataset(self, to: Path, *, limit: int | None = None) -> Path:
        """The zip of images with their final labels, streamed to the file or folder `to`."""
        query = {} if limit is None else {"limit_cases": str(limit)}
        return await self._download(Route.DATASET, to, **query)

    async def upload_image(self, file: Path, *, image: str | None = None, params: Params | None = None) -> str:
        """Store an image; its id, which is the file's name without extension unless `image` says another."""
        call = Call(
            method="PUT",
            path=Route.IMAGE,
            query={"image": image} if image else {},
            form={"params": json.dumps(self._signed(params))},
            files=[("file", file)],
        )
        return str((await self._transport.send(call, read_json))["image"])

    async def delete_image(self, image: str) -> None:
        """Remove an image and its labels."""
        await self._send("DELETE", Route.IMAGE, id=image)

    async def has_image(self, image: str) -> bool:
        """True when the server has the image."""
        return await self._exists(Route.IMAGE, image=image)

    async def download_image(self, image: str, to: Path) -> Path:
        """The image's file, streamed to the file or folder `to`."""
        return await self._download(Route.IMAGE, to, image=image)

    async def image_info(self, image: str) -> dict[str, Any]:
        """What is known about the image; empty for an unknown one."""
        return cast("dict[str, Any]", await self._get(Route.IMAGE_INFO, image=image))

    async def update_image_info(self, image: str, info: Params) -> None:
        """Merge `info` into the image's."""
        await self._send("PUT", Route.IMAGE_INFO, form={"info": json.dumps(dict(info))}, image=image)

    # Labels

    async def save_label(self, image: str, file: Path, *, tag: str = FINAL, params: Params | None = None) -> SavedLabel:
        """Store a label map; when this returns, it survives power loss. Its info becomes `params`."""
        call = Call(
            method="PUT",
            path=Route.LABEL,
            query={"image": image, "tag": tag},
            form={"params": json.dumps(self._signed(params))},
            files=[("label", file)],
        )
        return cast(SavedLabel, await self._transport.send(call, read_json))

    async def delete_label(self, image: str, tag: str = FINAL) -> None:
        """Remove the label under the tag, if there is one."""
        await self._send("DELETE", Route.LABEL, id=image, tag=tag)

    async def has_label(self, image: str, tag: str = FINAL) -> bool:
        """True when the image has a label under the tag."""
        return await self._exists(Route.LABEL, image=image, tag=tag)

    async def download_label(self, image: str, to: Path, *, tag: str = FINAL) -> Path:
        """The label's file, streamed to the file or folder `to`."""
        return await self._download(Route.LABEL, to, label=image, tag=tag)

    async def label_info(self, image: str, tag: str = FINAL) -> dict[str, Any]:
        """What is known about the label; empty for an unknown one."""
        return cast("dict[str, Any]", await self._get(Route.LABEL_INFO, label=image, tag=tag))

    async def update_label_info(self, image: str, info: Params, *, tag: str = FINAL) -> None:
        """Merge `info` into the label's."""
        await self._send("PUT", Route.LABEL_INFO, form={"info": json.dumps(dict(info))}, label=image, tag=tag)

    # Models

    async def download_model(self, model: str, to: Path) -> Path:
        """The weights that serve, streamed to the file or folder `to`."""
        return await self._download(Route.MODEL.filled(model=model), to)

    async def model_info(self, model: str) -> ModelFile:
        """Digest and time of the weights that serve."""
        return cast(ModelFile, await self._get(Route.MODEL_INFO.filled(model=model)))

    async def upload_model(self, model: str, file: Path) -> ModelFile:
        """Publish weights (safetensors) as the model's next version."""
        call = Call(method="PUT", path=Route.MODEL.filled(model=model), files=[("file", file)])
        return cast(ModelFile, await self._transport.send(call, read_json))

    async def delete_model(self, model: str) -> None:
        """Let no version of the model serve."""
        await self._send("DELETE", Route.MODEL.filled(model=model))

    async def models(self) -> dict[str, Versions]:
        """The versions of every model, oldest first, and which serves."""
        return cast("dict[str, Versions]", await self._get(Route.MODELS))

    async def promote(self, model: str, version: str) -> str:
        """Let that version serve; its name."""
        answer = await self._send("POST", Route.PROMOTE.filled(model=model), json={"version": version})
        return str(answer["version"])

    async def rollback(self, model: str) -> str:
        """Let the version serve that served before; its name."""
        return str((await self._send("POST", Route.ROLLBACK.filled(model=model)))["version"])

    # Sessions

    async def create_session(self, *files: Path, expiry: int = 0, uncompress: bool = False) -> Session:
        """Send an image (several files are a DICOM series) to work on without storing it.

        `expiry` is in seconds, 0 for the server's own; `uncompress` unpacks an archive.
        """
        query = {"expiry": str(expiry), "uncompress": str(uncompress).lower()}
        call = Call(method="PUT", path=Route.SESSIONS, query=query, files=[("files", file) for file in files])
        return cast(Session, await self._transport.send(call, read_json))

    async def session(self, session: str, *, refresh: bool = False) -> SessionInfo:
        """A session's info; `refresh` keeps it alive."""
        path = Route.SESSION.filled(session_id=session)
        return cast(SessionInfo, await self._get(path, update_ts=str(refresh).lower()))

    async def download_session(self, session: str, to: Path) -> Path:
        """A session's image, streamed to the file or folder `to`."""
        return await self._download(Route.SESSION.filled(session_id=session), to, image="true")

    async def delete_session(self, session: str) -> None:
        """End a session."""
        await self._send("DELETE", Route.SESSION.filled(session_id=session))

    # Background jobs

    async def start_job(
        self,
        kind: JobKind,
        name: str,
        request: Params | None = None,
        *,
        enqueue: bool = False,
        images: str | None = None,
    ) -> Job:
        """Start training or batch inference of a model, or a scoring method.

        `images` are those to label or to score: "all", "labeled" or "unlabeled". Raises AlreadyRunning while one runs,
        unless it may `enqueue`.
        """
        query = {"enqueue": str(enqueue).lower()}
        body = self._signed(request)
        if images is not None and kind is JobKind.BATCH:
            query["images"] = images
        elif images is not None:
            body["images"] = images
        paths = {
            JobKind.TRAIN: Route.TRAIN_MODEL.filled(model=name),
            JobKind.SCORING: Route.SCORING_METHOD.filled(method=name),
            JobKind.BATCH: Route.BATCH_MODEL.filled(model=name),
        }
        call = Call(method="POST", path=paths[kind], query=query, json=body)
        return cast(Job, await self._transport.send(call, read_json))

    async def jobs(self, kind: JobKind | None = None) -> list[Job]:
        """All jobs, or all of that kind, oldest first."""
        if kind is None:
            return cast("list[Job]", await self._get(Route.JOBS))
        try:
            return cast("list[Job]", await self._get(_JOBS_OF[kind], all="true"))
        except NotFound:
            return []

    async def job(self, job: str) -> Job:
        """One job, with the names of its pictures."""
        return cast(Job, await self._get(Route.JOB.filled(job_id=job)))

    async def follow(self, job: str) -> AsyncIterator[Job]:
        """The job at each change, until it is over; across broken connections, too."""
        failed = 0
        while True:
            try:
                call = Call(method="GET", path=Route.JOB_EVENTS.filled(job_id=job))
                async with self._transport.opened(call) as answer, aclosing(events(answer)) as told:
                    async for _, found in told:
                        failed = 0
                        yield cast(Job, found)
                        if "end_ts" in found:
                            return
            except (Unreachable, Busy):
                failed += 1
                if failed == ATTEMPTS:
                    raise
            await asyncio.sleep(failed)

    async def cancel_job(self, job: str) -> Job:
        """Stop a job that waits or runs."""
        return cast(Job, await self._send("DELETE", Route.JOB.filled(job_id=job)))

    async def download_picture(self, job: str, name: str, to: Path) -> Path:
        """A picture that the job made, to the file `to` or under its own name into the folder `to`."""
        return await self._download(Route.JOB_FILE.filled(job_id=job, name=name), target_of(to, name))

    async def running(self, kind: JobKind) -> bool:
        """True while a job of that kind runs."""
        return await self._exists(_JOBS_OF[kind], "GET", check_if_running="true")

    async def stop_job(self, kind: JobKind) -> Job | None:
        """Stop the running job; None if none ran."""
        return cast("Job | None", await self._send("DELETE", _JOBS_OF[kind]))

    def _signed(self, params: Params | None) -> dict[str, Any]:
        return {**(params or {}), **({"client_id": self._client_id} if self._client_id else {})}

    async def _get(self, path: str, **query: str) -> Any:
        return await self._transport.send(Call(method="GET", path=path, query=query), read_json)

    async def _send(
        self, method: str, path: str, json: Any = None, form: Mapping[str, str] | None = None, **query: str
    ) -> Any:
        call = Call(method=method, path=path, query=query, json=json, form=form or {})
        return await self._transport.send(call, read_json)

    async def _exists(self, path: str, method: str = "HEAD", **query: str) -> bool:
        try:
            await self._transport.send(Call(method=method, path=path, query=query), read_nothing)
        except NotFound:
            return False
        return True

    async def _download(self, path: str, to: Path, **query: str) -> Path:
        return await self._transport.send(Call(method="GET", path=path, query=query), read_file(to))


__all__ = ["AsyncClient", "Params"]
