"""Typed clients: methods of a service as coroutines, checked by mypy against the service itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from mypy import api

from actors.client import ActorClient, forwarded
from rayapp.errors import NotFound


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
