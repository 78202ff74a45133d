"""Signing in on the wire: a provider's tokens, and delays for wrong keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fastapi import HTTPException

from deployments import wrong_keys
from deployments.wrong_keys import FREE, MAX_WAITING, WrongKeys
from rayapp.protocol import Role
from tests.gateway.conftest import Serve, Served
from tests.provider import Provider, provider


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider() as made:
        yield made


@pytest.fixture(scope="module")
def hospital(serve: Serve, running: Provider) -> Served:
    return serve(auth="oidc", oidc={"issuer": running.front.url})


def test_a_providers_token_lets_in_as_far_as_its_role_reaches(hospital: Served, running: Provider):
    headers = {"Authorization": f"Bearer {running.token()}"}
    assert hospital.get("/auth/token/valid", headers=headers).json()["username"] == "anna"
    assert hospital.get("/info/", headers=headers).status_code == 200
    assert hospital.get("/logs/", headers=headers).status_code == 403
    assert hospital.get("/info/").status_code == 401
    assert hospital.get("/info/", headers={"Authorization": f"Bearer {running.token(aud='other')}"}).status_code == 401


def test_slicer_signs_in_with_name_and_password(hospital: Served, running: Provider):
    form = {"username": "anna", "password": "geheim", "grant_type": "password"}
    token = hospital.post("/auth/token", data=form).json()["access_token"]
    assert hospital.get("/info/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert hospital.post("/auth/token", data={**form, "password": "x"}).status_code == 401


def test_a_provider_that_is_away_is_503_with_a_time_to_retry(hospital: Served, running: Provider):
    running.front.way = "500"
    try:
        form = {"username": "anna", "password": "geheim"}
        answer = hospital.post("/auth/token", data=form)
    finally:
        running.front.way = "pass"
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_wrong_keys_wait_longer_and_longer_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> None:
        seen = WrongKeys()
        monkeypatch.setattr(wrong_keys, "asyncio", SimpleNamespace(sleep=sleep))
        for _ in range(FREE):
            await seen.refused("10.0.0.1")
        assert slept == []
        for _ in range(8):
            await seen.refused("10.0.0.1")
        await seen.refused("10.0.0.2")
        assert slept == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
        seen._addresses["10.0.0.1"].last -= wrong_keys.FORGIVEN_S + 1
        await seen.refused("10.0.0.1")
        assert len(slept) == 8

    asyncio.run(run())


def test_who_tries_many_at_once_is_told_to_wait_and_nobody_else(monkeypatch: pytest.MonkeyPatch):
    async def run() -> None:
        seen, door = WrongKeys(), asyncio.Event()
        monkeypatch.setattr(wrong_keys, "asyncio", SimpleNamespace(sleep=lambda _: door.wait()))
        for _ in range(FREE):
            await seen.refused("10.0.0.1")
        waiting = [asyncio.create_task(seen.refused("10.0.0.1")) for _ in range(MAX_WAITING)]
        while seen._addresses["10.0.0.1"].waiting < MAX_WAITING:
            await asyncio.wait(waiting, timeout=0.01)
        with pytest.raises(HTTPException) as refused:
            await seen.refused("10.0.0.1")
        assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "8"})
        await seen.refused("10.0.0.2")
        door.set()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_right_key_never_waits(serve: Serve):
    served = serve(auth="token")
    key = {"Authorization": f"Bearer {served.users.add('anna', Role.USER)}"}
    for _ in range(FREE):
        assert served.get("/info/", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert served.app.state.wrong_keys._addresses["127.0.0.1"].count == FREE
    assert served.get("/info/", headers=key).status_code == 200
    assert served.get("/info/").status_code == 401
    assert served.app.state.wrong_keys._addresses["127.0.0.1"].count == FREE, "no key is no guess"
