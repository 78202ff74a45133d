"""Requests that never end: their connections are given back, and others are answered meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import requests
import uvicorn

from deployments import connections, guards
from deployments.connections import WatchedProtocol, watched
from rayapp.protocol import Role
from tests.gateway.conftest import Serve, Served, _listening

HALF = b"GET /info/ HTTP/1.1\r\nHost: localhost\r\nX-a: "


@pytest.fixture(scope="module")
def patient(serve: Serve) -> Iterator[Served]:
    """A gateway in the HTTP server that Ray Serve would start, which waits for a fraction of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")
        patch.setattr(connections, "HEADERS_S", 0.3)
        patch.setenv("RAYAPP_MAX_CONNECTIONS", "20")
        assert watched() == []
        served = serve(auth="token")
        with _listening(served.app) as url:
            served.url = url
            served.token = served.users.add("ann", Role.ADMIN)
            yield served


def test_half_a_header_gives_its_connection_back_and_whole_requests_are_answered_meanwhile(patient: Served):
    half = [socket.create_connection(patient.address, timeout=20) for _ in range(10)]
    for each in half:
        each.sendall(HALF)
    assert patient.get("/info/").status_code == 200
    for each in half:
        assert ended(each)


def test_neither_a_silent_connection_nor_a_dripping_one_is_kept(patient: Served):
    with socket.create_connection(patient.address, timeout=20) as silent:
        assert ended(silent)
    with socket.create_connection(patient.address, timeout=0.05) as dripping:
        dripping.sendall(HALF)
        assert any(_dripped(dripping) for _ in range(400))


def test_the_second_request_of_a_connection_must_be_whole_too(patient: Served):
    with socket.create_connection(patient.address, timeout=20) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        wire.sendall(HALF)
        assert ended(wire)


def test_one_address_may_hold_so_many_connections_and_no_more(patient: Served):
    with requests.Session() as kept:
        kept.get(f"{patient.url}/healthz", timeout=20).raise_for_status()
        held = [socket.create_connection(patient.address, timeout=20) for _ in range(30)]
        assert sum(ended(each) for each in held[20:]) == 10
        assert kept.get(f"{patient.url}/healthz", timeout=20).status_code == 200
        for each in held:
            assert ended(each)
    assert patient.get("/healthz").status_code == 200
    assert sum(WatchedProtocol.HELD.values()) <= 20


def test_a_body_that_drips_is_answered_408_and_leaves_no_file(patient: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guards, "BODY_S", 0.3)
    with socket.create_connection(patient.address, timeout=20) as wire:
        wire.sendall(
            b"PUT /datastore/?image=x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
            b"Authorization: Bearer " + str(patient.token).encode() + b"\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            b'Content-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\nabc'
        )
        answer = b""
        while piece := wire.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too slowly" in answer
    assert patient.staged() == []


def ended(wire: socket.socket) -> bool:
    """Wait for the server to close the connection."""
    try:
        return wire.recv(1) == b""
    except ConnectionResetError:
        return True


def _dripped(wire: socket.socket) -> bool:
    """One more byte of a header; true once the server has closed the connection."""
    try:
        wire.sendall(b"a")
        return ended(wire)
    except TimeoutError:
        return False
    except OSError:
        return True
