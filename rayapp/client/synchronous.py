"""Client and Interaction: the client for programs without an event loop.

Generated from the asynchronous client by `python -m rayapp.client.make_synchronous`: change that, not this.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

from rayapp.client.async_interaction import AsyncInteraction, Mask, Points, PromptFields
from rayapp.client.asynchronous import AsyncClient
from rayapp.client.caller import Params
from rayapp.client.results import InferResult
from rayapp.protocol import FINAL, JobKind, Output
from rayapp.responses import (
    DatastoreStatus,
    Info,
    InteractionState,
    Job,
    LabelRevision,
    ModelFile,
    Sample,
    SavedLabel,
    Session,
    SessionInfo,
    UserInfo,
    Versions,
)

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine on the client's event loop and waits for its result."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class Client:
    """A client of one server whose methods block; use it as `with Client(url) as client`, or call `close`.

    Its calls run on an event loop in a thread of its own, so it may be shared between threads and used in notebooks.
    Coordinates are voxel indices [i, j, k] of the image as its file stores it. Errors and retries are those of
    `AsyncClient`.
    """

    def __init__(
        self, url: str, *, token: str | None = None, client_id: str | None = None, timeout: float = 600
    ) -> None:
        """Open the connection.

        Args:
            url: The server's address, such as `http://127.0.0.1:8000`.
            token: The user's token, for a server started with `--auth`.
            client_id: Name of this annotator's program. A newer click of the same program supersedes its older one
                that is still queued.
            timeout: Seconds that the server may stay silent before a call fails with `Unreachable`.

        Raises:
            BadRequest: If `url` does not begin with `http://` or `https://`.
        """
        self._client = AsyncClient(url, token=token, client_id=client_id, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayapp client", daemon=True)
        self._thread.start()
        self._run(self._client.__aenter__())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread. Closing twice has no effect."""
        if self._loop.is_closed():
            return
        self._run(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def info(self) -> Info:
        """The server's app: its models, labels, trainers, strategies and annotation progress."""
        return self._run(self._client.info())

    def reload(self) -> None:
        """Make the server load its app again. Needs the role of an administrator."""
        self._run(self._client.reload())

    def logs(self, *, lines: int = 300) -> str:
        """The last lines of the server's log."""
        return self._run(self._client.logs(lines=lines))

    def gpu(self) -> str:
        """The output of `nvidia-smi` on the server."""
        return self._run(self._client.gpu())

    def whoami(self) -> UserInfo:
        """The user that the token belongs to, with the user's roles.

        Raises:
            NotFound: On a server without authentication.
        """
        return self._run(self._client.whoami())

    def infer(
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
        """Run a model on a stored image, on a session's image, or on the image in `file`.

        Args:
            model: The model's name, as `info()` lists it.
            image: Id of a stored image.
            params: Clicks by label name, each a list of voxel indices [i, j, k], and options of the model.
            session: Id of a session, used in place of `image`.
            file: An image that is uploaded with the request.
            label: A label map to start from; scribble models take their strokes from it.
            output: Which parts the response shall have.
            to: File or folder that the mask is streamed to; by default it is kept in memory.

        Returns:
            The mask, on the image's voxel grid, and the params that came with it.

        Raises:
            NotFound: If there is no such model, image or session.
            BadRequest: If the params do not suit the model, or a click lies outside the image.
            ModelBroken: If the model cannot be loaded.
            Busy: If all replicas are still full after the last attempt.
        """
        return self._run(
            self._client.infer(
                model, image, params=params, session=session, file=file, label=label, output=output, to=to
            )
        )

    def infer_box(
        self, model: str, image: str = "", *, params: Params | None = None, session: str | None = None
    ) -> InferResult:
        """Run a model as `infer` does, with the mask sent as packed bits of its bounding box.

        This is the fastest encoding; decode the mask with `InferResult.labels()`.

        Args:
            model: The model's name.
            image: Id of a stored image.
            params: Clicks by label name, each a list of voxel indices [i, j, k], and options of the model.
            session: Id of a session, used in place of `image`.
        """
        return self._run(self._client.infer_box(model, image, params=params, session=session))

    def open_interaction(self, model: str, image: str) -> Interaction:
        """Open an interaction: a stored image segmented with a model, prompt by prompt.

        Args:
            model: Name of a model that takes prompts.
            image: Id of a stored image.
        """
        return Interaction(self._run(self._client.open_interaction(model, image)), self._run)

    def interaction(self, interaction: str) -> Interaction:
        """Continue an interaction, from any machine.

        Its mask is fetched by the first prompt, or by `Interaction.mask`.

        Args:
            interaction: The interaction's id.

        Raises:
            NotFound: If there is no such interaction.
        """
        return Interaction(self._run(self._client.interaction(interaction)), self._run)

    def interactions(self, image: str, *, user: str = "") -> list[InteractionState]:
        """The user's interactions on an image, oldest first.

        Args:
            image: Id of a stored image.
            user: Name of another user; reviewers only.
        """
        return self._run(self._client.interactions(image, user=user))

    def next_sample(self, strategy: str, *, params: Params | None = None) -> Sample | None:
        """The image to label next, leased to this client.

        Args:
            strategy: A strategy's name, as `info()` lists it, such as `first` or `random`.
            params: Options of the strategy.

        Returns:
            The image, or None when no image is left to label.
        """
        return self._run(self._client.next_sample(strategy, params=params))

    def uncertainty(self, method: str, image: str, to: Path, *, ext: str = ".nii.gz") -> Path:
        """Download an image's newest uncertainty map: uint8 on the image's voxel grid, 255 where all classes are
        equally likely.

        Args:
            method: Name of an uncertainty scoring method that has scored the image.
            image: Id of a stored image.
            to: File or folder to write to.
            ext: `.nii.gz` or `.nrrd`.

        Returns:
            The file written.

        Raises:
            NotFound: If the method has not scored the image yet.
        """
        return self._run(self._client.uncertainty(method, image, to, ext=ext))

    def uncertain_slices(self, method: str, image: str) -> dict[str, list[int]]:
        """The most uncertain slices across each voxel axis, most uncertain first.

        Args:
            method: Name of an uncertainty scoring method that has scored the image.
            image: Id of a stored image.

        Returns:
            Slice indices, from 0, by axis: `i`, `j` and `k`.

        Raises:
            NotFound: If the method has not scored the image yet.
        """
        return self._run(self._client.uncertain_slices(method, image))

    def datastore(self) -> DatastoreStatus:
        """Counts of images, of finished images, and of labels by tag."""
        return self._run(self._client.datastore())

    def datalist(self) -> list[dict[str, str]]:
        """The training list: each image with a `final` label, as the server's paths of `image` and `label`."""
        return self._run(self._client.datalist())

    def document(self) -> dict[str, Any]:
        """All images and labels with their info, laid out as MONAI Label's `datastore_v2.json`."""
        return self._run(self._client.document())

    def dataset(self, to: Path, *, limit: int | None = None) -> Path:
        """Download a zip of the images that have a `final` label, with these labels.

        Args:
            to: File or folder to write to.
            limit: Number of images at most; all by default.

        Returns:
            The file written.
        """
        return self._run(self._client.dataset(to, limit=limit))

    def upload_image(self, file: Path, *, image: str | None = None, params: Params | None = None) -> str:
        """Store an image.

        Args:
            file: A NIfTI or NRRD file.
            image: The image's id; by default the file's name without its extension.
            params: The image's info.

        Returns:
            The image's id.

        Raises:
            Unreadable: If the file is damaged; nothing is stored then.
        """
        return self._run(self._client.upload_image(file, image=image, params=params))

    def delete_image(self, image: str) -> None:
        """Delete an image and its labels. Needs the role of an administrator."""
        self._run(self._client.delete_image(image))

    def has_image(self, image: str) -> bool:
        """True when the server has an image with this id."""
        return self._run(self._client.has_image(image))

    def download_image(self, image: str, to: Path) -> Path:
        """Download an image's file; a DICOM series is converted to NIfTI.

        Args:
            image: The image's id.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return self._run(self._client.download_image(image, to))

    def image_info(self, image: str) -> dict[str, Any]:
        """The info recorded with an image; empty for an unknown image."""
        return self._run(self._client.image_info(image))

    def update_image_info(self, image: str, info: Params) -> None:
        """Merge `info` into the image's info."""
        self._run(self._client.update_image_info(image, info))

    def save_label(
        self, image: str, file: Path, *, tag: str = FINAL, params: Params | None = None, onto: int | None = None
    ) -> SavedLabel:
        """Save a label map of an image; once this returns, it is durable. Earlier ones are kept as revisions.

        Args:
            image: The image's id.
            file: The label map, on the image's voxel grid.
            tag: Tag to save it under; `final` marks the image as finished.
            params: The label's info, such as `label_info`.
            onto: Number of the revision that the label map was made from, 0 if there was none: the save is refused if
                another one is the newest by now. By default the newest one is replaced, whichever it is.

        Raises:
            NotFound: If there is no such image.
            Conflict: If somebody else saved since the revision `onto`; the text says who and when.
            GridMismatch: If the label map lies on another voxel grid; nothing is stored then.
            Unreadable: If the file is damaged; nothing is stored then.
        """
        return self._run(self._client.save_label(image, file, tag=tag, params=params, onto=onto))

    def delete_label(self, image: str, tag: str = FINAL) -> None:
        """Delete the label under a tag, if there is one; its revisions are kept. Needs the role of an administrator."""
        self._run(self._client.delete_label(image, tag))

    def has_label(self, image: str, tag: str = FINAL) -> bool:
        """True when the image has a label under the tag."""
        return self._run(self._client.has_label(image, tag))

    def download_label(self, image: str, to: Path, *, tag: str = FINAL, revision: int | None = None) -> Path:
        """Download a label.

        Args:
            image: The image's id.
            to: File or folder to write to.
            tag: The label's tag.
            revision: Number of an earlier revision; the newest one by default.

        Returns:
            The file written.

        Raises:
            NotFound: If there is no such label, or no such revision of it.
        """
        return self._run(self._client.download_label(image, to, tag=tag, revision=revision))

    def label_revisions(self, image: str, tag: str = FINAL) -> list[LabelRevision]:
        """Every saved state of a label, oldest first, also after the label was deleted."""
        return self._run(self._client.label_revisions(image, tag))

    def restore_label(self, image: str, revision: int, *, tag: str = FINAL, onto: int | None = None) -> SavedLabel:
        """Save an earlier revision of a label again, as the newest one; those between are kept.

        Args:
            image: The image's id.
            revision: Number of the revision to restore.
            tag: The label's tag.
            onto: Number of the revision that must still be the newest one; any by default.

        Raises:
            NotFound: If there is no such revision.
            Conflict: If somebody else saved since the revision `onto`; the text says who and when.
        """
        return self._run(self._client.restore_label(image, revision, tag=tag, onto=onto))

    def label_info(self, image: str, tag: str = FINAL) -> dict[str, Any]:
        """The info recorded with a label; empty for an unknown label."""
        return self._run(self._client.label_info(image, tag))

    def update_label_info(self, image: str, info: Params, *, tag: str = FINAL) -> None:
        """Merge `info` into the label's info."""
        self._run(self._client.update_label_info(image, info, tag=tag))

    def download_model(self, model: str, to: Path) -> Path:
        """Download the weights of the version in production, as safetensors.

        Args:
            model: The model's name.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return self._run(self._client.download_model(model, to))

    def model_info(self, model: str) -> ModelFile:
        """Checksum and time of the version in production."""
        return self._run(self._client.model_info(model))

    def upload_model(self, model: str, file: Path) -> ModelFile:
        """Publish weights as the model's next version.

        Args:
            model: The model's name.
            file: Weights as safetensors, for the network of the version in production.

        Raises:
            Unreadable: If the weights do not fit the network; the version before stays in production.
        """
        return self._run(self._client.upload_model(model, file))

    def delete_model(self, model: str) -> None:
        """Take the model out of production; its versions are kept."""
        self._run(self._client.delete_model(model))

    def models(self) -> dict[str, Versions]:
        """The versions of each model, oldest first, and which of them is in production."""
        return self._run(self._client.models())

    def promote(self, model: str, version: str) -> str:
        """Promote a version to production. Requests in flight finish on the version before.

        Args:
            model: The model's name.
            version: The version's name, as `models()` lists it.

        Returns:
            The version's name.
        """
        return self._run(self._client.promote(model, version))

    def rollback(self, model: str) -> str:
        """Promote the version that was in production before the present one.

        Args:
            model: The model's name.

        Returns:
            That version's name.
        """
        return self._run(self._client.rollback(model))

    def create_session(self, *files: Path, expiry: int = 0, uncompress: bool = False) -> Session:
        """Upload an image without storing it.

        Args:
            *files: One image file, or the files of one DICOM series.
            expiry: Seconds without use after which the session ends; 0 stands for the server's limit.
            uncompress: Unpack the file, an archive of DICOM files.

        Raises:
            Unreadable: If the files are no readable image.
        """
        return self._run(self._client.create_session(*files, expiry=expiry, uncompress=uncompress))

    def session(self, session: str, *, refresh: bool = False) -> SessionInfo:
        """A session's info.

        Args:
            session: The session's id.
            refresh: Count this call as a use, which postpones the session's expiry.
        """
        return self._run(self._client.session(session, refresh=refresh))

    def download_session(self, session: str, to: Path) -> Path:
        """Download a session's image.

        Args:
            session: The session's id.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return self._run(self._client.download_session(session, to))

    def delete_session(self, session: str) -> None:
        """End a session and delete its image."""
        self._run(self._client.delete_session(session))

    def start_job(
        self,
        kind: JobKind,
        name: str,
        request: Params | None = None,
        *,
        enqueue: bool = False,
        images: str | None = None,
    ) -> Job:
        """Submit a job.

        Args:
            kind: Training, scoring or batch inference.
            name: The model to train or to label images with, or the scoring method.
            request: Options of the trainer, the scoring method or the model.
            enqueue: Wait for the running job of this kind rather than fail.
            images: Images to score or to label: `all`, `labeled` or `unlabeled`.

        Raises:
            AlreadyRunning: If a job of this kind is running, unless `enqueue` is set.
            NotFound: If there is no such model or scoring method.
            BadRequest: If an option has a value that is not allowed.
        """
        return self._run(self._client.start_job(kind, name, request, enqueue=enqueue, images=images))

    def jobs(self, kind: JobKind | None = None) -> list[Job]:
        """All jobs, or all of one kind, oldest first."""
        return self._run(self._client.jobs(kind))

    def job(self, job: str) -> Job:
        """A job by its id, with the names of the files that it made for people."""
        return self._run(self._client.job(job))

    def follow(self, job: str) -> Iterator[Job]:
        """Follow a job: its state at each change, up to its end. Reconnects when the connection breaks, and goes on
        behind the last state that it has received.

        Args:
            job: The job's id.
        """
        return _iterate(self._run, self._client.follow(job))

    def cancel_job(self, job: str) -> Job:
        """Cancel a job that is waiting or running, by its id."""
        return self._run(self._client.cancel_job(job))

    def download_job_file(self, job: str, name: str, to: Path) -> Path:
        """Download one of a job's files, such as the learning curves, or the page of a training's result.

        Args:
            job: The job's id.
            name: The file's name, as the job's `files` lists it.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return self._run(self._client.download_job_file(job, name, to))

    def running(self, kind: JobKind) -> bool:
        """True while a job of this kind is running."""
        return self._run(self._client.running(kind))

    def stop_job(self, kind: JobKind) -> Job | None:
        """Stop the running job of this kind.

        Args:
            kind: Training, scoring or batch inference.

        Returns:
            The stopped job, or None when none was running.
        """
        return self._run(self._client.stop_job(kind))


class Interaction:
    """An interaction on one server, made by `Client.open_interaction`; its methods block."""

    def __init__(self, interaction: AsyncInteraction, run: Run) -> None:
        self._interaction = interaction
        self._run = run

    @property
    def id(self) -> str:
        """The interaction's id, which `Client.interaction` continues from any machine."""
        return self._interaction.id

    @property
    def image(self) -> str:
        """Id of the image."""
        return self._interaction.image

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._interaction.model

    @property
    def labels(self) -> Mask | None:
        """The current mask, (I, J, K); None before the first prompt."""
        return self._interaction.labels

    @property
    def step(self) -> int:
        """Number of the event in the click log that `labels` belongs to."""
        return self._interaction.step

    @property
    def params(self) -> dict[str, Any]:
        """The params that came with `labels`."""
        return self._interaction.params

    def prompt(self, clicks: Mapping[str, Points] | None = None, **fields: Unpack[PromptFields]) -> Mask:
        """Add a prompt.

        Args:
            clicks: Clicks by label name, each voxel indices [i, j, k].
            **fields: Curves, scribbles, a box and more: see `PromptFields`.

        Returns:
            The mask that the model makes of all prompts so far.

        Raises:
            BadRequest: If the prompt does not suit the image or the model; it is not recorded then.
        """
        return self._run(self._interaction.prompt(clicks, **fields))

    def stream(self, clicks: Mapping[str, Points] | None = None, **fields: Unpack[PromptFields]) -> Iterator[Mask]:
        """Add a prompt and receive each mask of the answer: a coarse one early, then the refined ones. Reconnects when
        the connection breaks, and goes on behind the last mask that it has received.

        Args:
            clicks: Clicks by label name, each voxel indices [i, j, k].
            **fields: Curves, scribbles, a box and more: see `PromptFields`.

        Raises:
            BadRequest: If the prompt does not suit the image or the model; it is not recorded then.
            Conflict: When a newer prompt of the interaction supersedes this one.
        """
        return _iterate(self._run, self._interaction.stream(clicks, **fields))

    def larger(self) -> Mask:
        """Take the next larger answer to the prompts so far, such as an organ in place of its part.

        It is the same answer if there is no larger one. It can be undone.
        """
        return self._run(self._interaction.larger())

    def smaller(self) -> Mask:
        """Take the next smaller answer to the prompts so far, as `larger` does."""
        return self._run(self._interaction.smaller())

    def undo(self) -> Mask:
        """Undo the last prompt.

        Returns:
            The mask of the prompts before it.

        Raises:
            Conflict: If there is no prompt to undo.
        """
        return self._run(self._interaction.undo())

    def redo(self) -> Mask:
        """Redo the prompt that was undone last.

        Returns:
            The mask with that prompt.

        Raises:
            Conflict: If there is no prompt to redo.
        """
        return self._run(self._interaction.redo())

    def stream_undo(self) -> Iterator[Mask]:
        """Undo the last prompt and receive each mask of the answer, as `stream` does."""
        return _iterate(self._run, self._interaction.stream_undo())

    def stream_redo(self) -> Iterator[Mask]:
        """Redo the prompt that was undone last and receive each mask of the answer, as `stream` does."""
        return _iterate(self._run, self._interaction.stream_redo())

    def state(self) -> InteractionState:
        """The prompts in force and the click log, including prompts that were sent from elsewhere."""
        return self._run(self._interaction.state())

    def mask(self, *, step: int | None = None, model: str = "", version: str = "") -> Mask:
        """The current mask, or a replay of the click log. `labels` stays unchanged.

        Args:
            step: Number of the event in the click log up to which prompts count; all by default.
            model: Another model to replay the prompts with.
            version: Another version of the model to replay the prompts with.
        """
        return self._run(self._interaction.mask(step=step, model=model, version=version))


def _iterate(run: Run, items: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of an asynchronous generator, which is closed when the caller stops iterating."""

    async def following() -> T | None:
        return await anext(items, None)

    try:
        while (item := run(following())) is not None:
            yield item
    except GeneratorExit:
        with contextlib.suppress(RuntimeError):  # the client was closed before, and its connections with it
            run(items.aclose())
        raise


__all__ = ["Client", "Interaction"]
