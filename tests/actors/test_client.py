"""Typed clients: methods of a service as coroutines, checked by mypy against the service itself."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import cast

import pytest
import ray.actor
from mypy import api

from actors.client import LONG_S, ActorClient, forwarded
from deployments.clients import DatastoreClient, JobsClient, ModelsClient
from rayapp.errors import Busy, NotFound


class Shelf:
    def thread(self) -> threading.Thread:
        return threading.current_thread()

    def book(self, title: str, *, page: int = 1) -> tuple[str, int]:
        if title == "lost":
            raise NotFound("no such book")
        return title, page


class ShelfClient(ActorClient[Shelf]):
    thread = forwarded(Shelf.thread)
    book = forwarded(Shelf.book)


async def test_a_call_on_a_plain_object_runs_in_a_thread_of_its_own() -> None:
    assert await ShelfClient(Shelf()).thread() is not threading.current_thread()


async def test_parameters_results_and_errors_are_those_of_the_method() -> None:
    client = ShelfClient(Shelf())
    assert await client.book("atlas", page=7) == ("atlas", 7)
    with pytest.raises(NotFound, match="no such book"):
        await client.book("lost")


class Silent:
    """A handle of an actor behind a cut network."""

    def __getattr__(self, name: str) -> Silent:
        return self

    async def remote(self, *args: object, **kwargs: object) -> None:
        await asyncio.Event().wait()


class ImpatientClient(ActorClient[Shelf]):
    book = forwarded(Shelf.book, patience=0.01)


async def test_an_actor_that_does_not_answer_in_time_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.actor, "ActorHandle", Silent)
    with pytest.raises(Busy, match="did not answer in time"):
        await ImpatientClient(cast(Shelf, Silent())).book("atlas")


def test_every_call_of_every_client_has_a_time_limit() -> None:
    for client in (DatastoreClient, ModelsClient, JobsClient):
        calls = {name: call for name, call in vars(client).items() if isinstance(call, forwarded)}
        assert calls
        assert all(0 < call._patience <= LONG_S for call in calls.values())


MISUSES = {
    "a parameter of another type": ("await client.image(3)", "arg-type"),
    "a parameter that the method lacks": ("await client.image('ct_a', tag='final')", "call-arg"),
    "a method that the datastore lacks": ("await client.imagine('ct_a')", "attr-defined"),
    "another result": ("path: str = await client.image('ct_a')", "assignment"),
    "another service": ("DatastoreClient(UserStore(Path('users.json')))", "arg-type"),
}


@pytest.mark.slow
def test_mypy_sees_every_misuse_of_a_client(tmp_path: Path) -> None:
    lines = [
        "from pathlib import Path",
        "from deployments.clients import DatastoreClient",
        "from rayapp.users import UserStore",
        "async def use(client: DatastoreClient) -> None:",
        *(f"    {line}" for line, _ in MISUSES.values()),
    ]
    source = tmp_path / "misuse.py"
    source.write_text("\n".join(lines))
    told, _, status = api.run([str(source), "--cache-dir", str(tmp_path / "cache")])
    assert status == 1
    for number, (_, kind) in enumerate(MISUSES.values(), start=5):
        assert any(f"misuse.py:{number}:" in line and f"[{kind}]" in line for line in told.splitlines()), told
