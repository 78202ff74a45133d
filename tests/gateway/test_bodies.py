"""Bodies as they come: caps, cut-off and odd forms, many at once."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from deployments import uploads
from deployments.guards import MAX_TEXT
from deployments.routes import images
from deployments.uploads import CHECKS, MAX_WAITING, Checks
from rayapp.errors import Busy
from tests.gateway.conftest import MAX_BODY, Served, write_image
from tests.waiting import until

LIMIT = "----------lImIt_of_THE_fIle_eW_$"
FORM = {"Content-Type": f"multipart/form-data; boundary={LIMIT}"}


def slicers(*parts: bytes) -> bytes:
    """A body as Slicer's client writes it, with its newline after the end."""
    return b"".join(f"--{LIMIT}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{LIMIT}--\r\n\r\n".encode()


def part(name: str, body: bytes, more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + body


def test_a_form_as_slicer_writes_it_is_read(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "slicer.nii.gz").read_bytes()
    body = slicers(part("params", b'{"client_id": "s"}'), part("file", file, '; filename="C:\\Temp\\slicer.nii.gz"'))
    answer = gateway.put("/datastore/?image=Slicer+1", data=body, headers=FORM)
    assert answer.json() == {"image": "Slicer 1"}
    assert gateway.store.image("Slicer 1").path.read_bytes() == file
    assert gateway.store.image("Slicer 1").info["client_id"] == "s"


def test_a_file_that_looks_like_a_boundary_comes_through(gateway: Served):
    body = (f"\r\n--{LIMIT}x\r\n--{LIMIT[:-1]}\r\n-" * 3000).encode()
    answer = gateway.put("/session/", data=slicers(part("files", body, '; filename="x.nii"')), headers=FORM)
    assert answer.status_code == 422
    assert "cut off" not in answer.text


def test_params_may_come_as_a_blob_with_a_file_name(gateway: Served):
    body = slicers(part("params", b'{"client_id": "blob"}', '; filename="blob"'))
    assert gateway.post("/infer/bright?image=ct_a&output=json", data=body, headers=FORM).status_code == 200
    assert gateway.network.calls[-1].client_id == "blob"


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (slicers(part("params", b"{}"))[:-30], FORM, "cut off"),
        (b"", FORM, "cut off"),
        (b"rubbish" * 100, FORM, "malformed"),
        (slicers(part("params", b"{}")), {"Content-Type": "multipart/form-data"}, "boundary"),
        (slicers(part("params", b"{}")), {"Content-Type": "multipart/form-data; boundary=" + "b" * 5000}, ""),
        (b"{}", {"Content-Type": "application/json"}, "multipart/form-data"),
    ],
)
def test_a_form_that_is_none_is_refused(gateway: Served, body: bytes, headers: dict[str, str], said: str):
    answer = gateway.post("/infer/bright?image=ct_a", data=body, headers=headers)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_a_declared_length_over_the_cap_is_refused_before_it_is_sent(gateway: Served):
    with socket.create_connection(gateway.address, timeout=10) as wire:
        wire.sendall(
            f"PUT /datastore/?image=big HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY + 1}\r\n"
            f"Content-Type: {FORM['Content-Type']}\r\n\r\n".encode()
        )
        answer = wire.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"max_body" in answer


def test_a_body_without_a_length_is_cut_off_at_the_cap(gateway: Served):
    def pieces():
        yield slicers(part("file", b"", '; filename="big.nii"'))[: -len(f"\r\n--{LIMIT}--\r\n\r\n")]
        for _ in range(2 * MAX_BODY // 10_000):
            yield bytes(10_000)

    try:
        answer = gateway.put("/datastore/?image=big", data=pieces(), headers=FORM)
        assert answer.status_code == 413
    except requests.ConnectionError:
        pass  # The server hung up in the middle of our sending, which is as well.
    until(lambda: gateway.staged() == [])
    assert "big" not in gateway.store.image_ids()


def test_text_that_is_held_in_memory_has_a_cap_of_its_own(serve):
    roomy = serve(max_body=4 * MAX_TEXT)
    answer = roomy.infer("image=ct_a", '{"x": "' + "x" * MAX_TEXT + '"}', files={"other": b""})
    assert answer.status_code == 413
    assert "'params'" in answer.json()["detail"]
    answer = roomy.post("/activelearning/first", data=b" " * (MAX_TEXT + 1))
    assert answer.status_code == 413
    assert "multipart" in answer.json()["detail"]


def test_a_client_that_hangs_up_in_an_upload_leaves_nothing(gateway: Served):
    with socket.create_connection(gateway.address, timeout=10) as wire:
        head = "PUT /datastore/?image=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
        head += f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
        wire.sendall(head.encode() + slicers(part("file", bytes(3000), '; filename="x.nii"'))[:2000])
        until(lambda: gateway.staged() != [])
    until(lambda: gateway.staged() == [])


def test_uploads_beyond_what_can_be_checked_are_told_to_come_back():
    async def crowd() -> list[object]:
        checks, release = Checks(), threading.Event()
        running = [asyncio.ensure_future(checks.run(release.wait, 60)) for _ in range(CHECKS + MAX_WAITING)]
        await asyncio.sleep(0)  # each of them has come as far as it can
        with pytest.raises(Busy):
            await checks.run(int)
        release.set()
        return [*await asyncio.gather(*running), await checks.run(int)]

    assert asyncio.run(crowd()) == [True] * (CHECKS + MAX_WAITING) + [0]


def test_the_server_answers_while_uploads_are_checked(gateway: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_image(tmp_path / "many.nii.gz").read_bytes()
    checking, go = threading.Semaphore(0), threading.Event()

    def check_image(path: Path, max_bytes: int) -> None:
        checking.release()
        assert go.wait(60)
        uploads.check_image(path, max_bytes)

    monkeypatch.setattr(images, "check_image", check_image)

    def upload(number: int) -> int:
        return gateway.put(f"/datastore/?image=many_{number}", files={"file": ("x.nii.gz", file)}).status_code

    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(upload, number) for number in range(8)]
        try:
            for _ in range(CHECKS):
                assert checking.acquire(timeout=60)
            assert gateway.get("/info/").status_code == 200
            assert not any(one.done() for one in sent)
        finally:
            go.set()
    assert [one.result() for one in sent] == [200] * 8
    assert {f"many_{number}" for number in range(8)} <= set(gateway.store.image_ids())
