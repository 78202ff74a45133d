"""Client: the same methods for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from rayapp.client.asynchronous import AsyncClient
from rayapp.client.prompting import Interaction
from rayapp.responses import Job

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]


def _waits(method: Method[P, T]) -> Callable[Concatenate[Client, P], T]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._client, *args, **kwargs))

    call.__name__, call.__qualname__ = method.__name__, f"Client.{method.__name__}"
    call.__doc__ = method.__doc__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # so that help() shows the signature
    return call


class Client:
    """`AsyncClient` with methods that wait; use it as `with Client(url) as client`.

    Its calls run on an event loop in a thread of its own, so it may be shared between threads.
    """

    def __init__(
        self, url: str, *, token: str | None = None, client_id: str | None = None, timeout: float = 600
    ) -> None:
        """As of `AsyncClient`."""
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
        """Close the connections and end the thread; a second time does nothing."""
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

    def follow(self, job: str) -> Iterator[Job]:
        """The job at each change, until it is over; across broken connections, too."""
        changes = self._client.follow(job)

        async def change() -> Job | None:
            return await anext(changes, None)

        while (found := self._run(change())) is not None:
            yield found

    def open_interaction(self, model: str, image: str) -> Interaction:
        """Start to work on a stored image with a model, prompt by prompt."""
        return Interaction(self._run(self._client.open_interaction(model, image)), self._run)

    def interaction(self, interaction: str) -> Interaction:
        """Go on with an interaction, on whichever machine."""
        return Interaction(self._run(self._client.interaction(interaction)), self._run)

    interactions = _waits(AsyncClient.interactions)
    info = _waits(AsyncClient.info)
    reload = _waits(AsyncClient.reload)
    logs = _waits(AsyncClient.logs)
    gpu = _waits(AsyncClient.gpu)
    whoami = _waits(AsyncClient.whoami)
    infer = _waits(AsyncClient.infer)
    infer_box = _waits(AsyncClient.infer_box)
    next_sample = _waits(AsyncClient.next_sample)
    uncertainty = _waits(AsyncClient.uncertainty)
    uncertain_slices = _waits(AsyncClient.uncertain_slices)
    datastore = _waits(AsyncClient.datastore)
    datalist = _waits(AsyncClient.datalist)
    document = _waits(AsyncClient.document)
    dataset = _waits(AsyncClient.dataset)
    upload_image = _waits(AsyncClient.upload_image)
    delete_image = _waits(AsyncClient.delete_image)
    has_image = _waits(AsyncClient.has_image)
    download_image = _waits(AsyncClient.download_image)
    image_info = _waits(AsyncClient.image_info)
    update_image_info = _waits(AsyncClient.update_image_info)
    save_label = _waits(AsyncClient.save_label)
    delete_label = _waits(AsyncClient.delete_label)
    has_label = _waits(AsyncClient.has_label)
    download_label = _waits(AsyncClient.download_label)
    label_info = _waits(AsyncClient.label_info)
    update_label_info = _waits(AsyncClient.update_label_info)
    download_model = _waits(AsyncClient.download_model)
    model_info = _waits(AsyncClient.model_info)
    upload_model = _waits(AsyncClient.upload_model)
    delete_model = _waits(AsyncClient.delete_model)
    create_session = _waits(AsyncClient.create_session)
    session = _waits(AsyncClient.session)
    download_session = _waits(AsyncClient.download_session)
    delete_session = _waits(AsyncClient.delete_session)
    models = _waits(AsyncClient.models)
    promote = _waits(AsyncClient.promote)
    rollback = _waits(AsyncClient.rollback)
    start_job = _waits(AsyncClient.start_job)
    jobs = _waits(AsyncClient.jobs)
    job = _waits(AsyncClient.job)
    cancel_job = _waits(AsyncClient.cancel_job)
    download_picture = _waits(AsyncClient.download_picture)
    running = _waits(AsyncClient.running)
    stop_job = _waits(AsyncClient.stop_job)
