"""The archive behind the gateway, through `/proxy/dicom/`: what passes, what never does, and what goes wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import requests
from aiohttp import web
from dicomweb_client import DICOMwebClient

from rayapp.protocol import Role
from tests.front import BROKEN, CUT, DENIED, PLAIN, SLOW, Asked, Front, front
from tests.gateway.conftest import MAX_BODY, Serve, Served
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import SERIES, STUDY, write_series
from tests.orthanc import Orthanc, needs_orthanc, orthanc

SIGNED = "Basic cmVhZGVyOnPDqWNyZXQ="


@pytest.fixture(scope="module")
def before() -> Iterator[Front]:
    with front() as standing:
        yield standing


@pytest.fixture(scope="module")
def proxied(serve: Serve, before: Front) -> Served:
    archive = {
        "url": before.url + "/pacs/rs",
        "qido": "query",
        "stow": "/store/",
        "user": "reader",
        "password": "sécret",
        "timeout": 1.0,
    }
    return serve(dicomweb=archive, max_volume=4 * MAX_BODY)


@pytest.fixture(autouse=True)
def _plain(request: pytest.FixtureRequest) -> None:
    if "before" in request.fixturenames:
        standing: Front = request.getfixturevalue("before")
        standing.way, standing.only, standing.answer = PLAIN, "", lambda _: web.Response(text="fine")
        standing.asked.clear()


def test_query_and_accept_reach_the_archive_as_they_were_sent_and_nothing_else_of_the_client_does(
    proxied: Served, before: Front
):
    query = "PatientName=*M%C3%BCller%20A*&includefield=00081030%2C00080060&limit=101&offset=0&fuzzymatching=true"
    headers = {
        "Accept": "application/dicom+json",
        "Authorization": "Bearer of-the-user",
        "Cookie": "a=b",
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "1",
        "X-Forwarded-For": "10.0.0.1",
    }
    assert proxied.get(f"/proxy/dicom/qido/studies?{query}", headers=headers).text == "fine"
    (asked,) = before.asked
    assert asked.path == f"/pacs/rs/query/studies?{query}"
    assert asked.headers["Accept"] == "application/dicom+json"
    assert asked.headers["Authorization"] == SIGNED
    assert {"Cookie", "X-Mine", "X-Forwarded-For", "Origin"}.isdisjoint(asked.headers)


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("wado/studies/1.2/series/3/instances/4/frames/1,2", "/pacs/rs/studies/1.2/series/3/instances/4/frames/1,2"),
        ("qido/studies/1.2/series/3/metadata", "/pacs/rs/studies/1.2/series/3/metadata"),
        ("qido/studies/1.2/series", "/pacs/rs/query/studies/1.2/series"),
        ("studies/1.2/series", "/pacs/rs/studies/1.2/series"),
        ("wado/studies/a%20b", "/pacs/rs/studies/a%20b"),
    ],
)
def test_each_service_has_its_own_place_in_the_archive(proxied: Served, before: Front, path: str, reached: str):
    assert proxied.get(f"/proxy/dicom/{path}").status_code == 200
    assert [asked.path for asked in before.asked] == [reached]


@pytest.mark.parametrize(
    "path",
    [
        "wado/..%2f..%2fadmin",
        "wado/studies/%2e%2e/%2e%2e/admin",
        "wado/http://other.example/studies",
        "wado//other.example/studies",
        "wado/studies/1%5c..%5cadmin",
        "wado/studies/1%0d%0aHost:%20other.example",
        "wado/@other.example/studies",
        "wado/servers/other/stow",
        "wado",
        "qido/",
    ],
)
def test_no_path_leads_out_of_the_archive_s_services(proxied: Served, before: Front, path: str):
    with socket.create_connection(proxied.address, timeout=10) as wire:  # as it is: clients tidy paths up
        wire.sendall(f"GET /proxy/dicom/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    assert answer.split()[1] in (b"400", b"404")
    assert before.asked == []


def test_no_redirect_is_followed(proxied: Served, before: Front):
    before.answer = lambda _: web.Response(status=302, headers={"Location": "http://169.254.169.254/latest"})
    answer = proxied.get("/proxy/dicom/wado/studies/1", allow_redirects=False)
    assert answer.status_code == 502
    assert "Location" not in answer.headers
    assert len(before.asked) == 1


def test_status_and_body_come_back_as_they_are_and_cookies_and_hop_by_hop_headers_do_not(
    proxied: Served, before: Front
):
    body = bytes(range(256)) * 40
    headers = {"Set-Cookie": "a=b", "Keep-Alive": "timeout=9", "ETag": '"7"', "Warning": "299 more", "Server": "Pacs"}
    before.answer = lambda _: web.Response(status=206, body=body, headers=headers, content_type="multipart/related")
    answer = proxied.get("/proxy/dicom/wado/studies/1")
    assert answer.status_code == 206
    assert answer.content == body
    assert answer.headers["Content-Type"] == "multipart/related"
    assert answer.headers["Content-Length"] == str(len(body))
    assert (answer.headers["ETag"], answer.headers["Warning"]) == ('"7"', "299 more")
    assert {"set-cookie", "keep-alive"}.isdisjoint(name.lower() for name in answer.headers)
    assert "Pacs" not in str(answer.headers)


@pytest.mark.parametrize("status", [204, 304, 400, 404, 406, 500])
def test_what_the_archive_says_of_the_request_is_passed_on(proxied: Served, before: Front, status: int):
    before.answer = lambda _: web.Response(status=status)
    assert proxied.get("/proxy/dicom/qido/studies").status_code == status


def test_instances_are_streamed_to_the_archive(proxied: Served, before: Front):
    body = bytes(MAX_BODY - 9)
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    for sent in (body, (body[start : start + 65536] for start in range(0, len(body), 65536))):
        before.asked.clear()
        answer = proxied.post("/proxy/dicom/stow/studies", data=sent, headers={"Content-Type": kind})
        assert answer.status_code == 200
        (asked,) = before.asked
        assert asked.body == body
        assert (asked.method, asked.path) == ("POST", "/pacs/rs/store/studies")
        assert asked.headers["Content-Type"] == kind


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_cap_is_refused(proxied: Served, chunked: bool):
    body = bytes(MAX_BODY + 1)
    sent = (body[start : start + 65536] for start in range(0, len(body), 65536)) if chunked else body
    try:
        answer = proxied.post("/proxy/dicom/stow/studies", data=sent, headers={"Content-Type": "multipart/related"})
    except requests.ConnectionError:  # it hung up before all was sent
        return
    assert answer.status_code == 413


def test_nothing_is_posted_but_instances(proxied: Served, before: Front):
    for path in ("stow/studies/1/series", "wado/series", "qido/instances"):
        assert proxied.post(f"/proxy/dicom/{path}", data=b"x").status_code == 400
    assert before.asked == []


def test_an_answer_over_the_cap_is_refused_or_broken_off(proxied: Served, before: Front):
    before.answer = lambda _: web.Response(body=bytes(4 * MAX_BODY + 1))
    answer = proxied.get("/proxy/dicom/wado/studies/1")
    assert answer.status_code == 413
    assert "max_volume" in answer.json()["detail"]


@pytest.mark.parametrize(("way", "status"), [(BROKEN, 500), (SLOW, 504), (DENIED, 502)])
def test_an_archive_that_misbehaves_is_told_apart(proxied: Served, before: Front, way: str, status: int):
    before.way = way
    answer = proxied.get("/proxy/dicom/qido/studies")
    assert answer.status_code == status
    if way == DENIED:  # the user is signed in well; it is this server that is not
        assert "WWW-Authenticate" not in answer.headers


def test_an_answer_that_breaks_off_never_looks_whole(serve: Serve, before: Front):
    with front(before.url) as cutting:
        cutting.way = CUT
        proxied = serve(dicomweb={"url": cutting.url}, max_volume=64 << 20)
        before.answer = lambda _: web.Response(body=bytes(8 << 20))
        with pytest.raises(requests.RequestException):
            _ = proxied.get("/proxy/dicom/wado/studies/1").content
        before.answer = lambda _: web.Response(body=bytes(100_000))
        answer = proxied.get("/proxy/dicom/wado/studies/1")
    assert answer.status_code == 502
    assert "broke off" in answer.json()["detail"]


def test_an_archive_that_is_away_is_a_502(serve: Serve):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    answer = serve(dicomweb={"url": f"http://127.0.0.1:{port}"}).get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "archive" in answer.json()["detail"]


def test_a_token_that_the_archive_refuses_before_it_ends_is_replaced_at_once(serve: Serve, before: Front):
    valid = "t1"

    def answer(request: Asked) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"access_token": valid, "expires_in": 3600})
        right = request.headers["Authorization"] == f"Bearer {valid}"
        return web.Response(text="fine", status=200 if right else 401)

    before.answer = answer
    archive = {"url": before.url, "token_url": before.url + "/token", "client_id": "rayapp", "client_secret": "s3"}
    signed_in = serve(dicomweb=archive)
    assert signed_in.get("/proxy/dicom/qido/studies").text == "fine"
    valid = "t2"
    assert signed_in.get("/proxy/dicom/qido/studies").text == "fine"
    assert signed_in.get("/proxy/dicom/qido/studies").text == "fine"
    assert len(before.paths("/token", "POST")) == 2


def test_with_keys_reading_is_for_users_and_storing_for_annotators(serve: Serve, before: Front):
    keyed = serve(auth="token", dicomweb={"url": before.url})
    keys = {role: keyed.users.add(f"the {role.value}", role) for role in Role}
    assert keyed.get("/proxy/dicom/qido/studies").status_code == 401
    for role, status in ((Role.USER, 403), (Role.ANNOTATOR, 200)):
        keyed.token = keys[role]
        assert keyed.get("/proxy/dicom/qido/studies").status_code == 200
        sent = {"data": b"x", "headers": {"Content-Type": "multipart/related"}}
        assert keyed.post("/proxy/dicom/stow/studies", **sent).status_code == status
    assert all("Bearer" not in asked.headers.get("Authorization", "") for asked in before.asked)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder) as running:
        running.store(write_series(folder / "series", voxels(), AFFINES["oblique"]))
        yield running


@needs_orthanc
def test_the_field_s_own_client_works_through_the_proxy_as_it_does_on_orthanc(
    serve: Serve, held: Orthanc, tmp_path: Path
):
    proxied = serve(dicomweb={"url": held.url})
    client = DICOMwebClient(
        proxied.url + "/proxy/dicom", qido_url_prefix="qido", wado_url_prefix="wado", stow_url_prefix="stow"
    )
    direct = held.client()
    (found,), (wanted,) = client.search_for_series(search_filters={"Modality": "CT"}), direct.search_for_series()
    assert {**found, "00081190": None} == {**wanted, "00081190": None}  # but for the address that each asked
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []
    through = {i.SOPInstanceUID: i.PixelData for i in client.retrieve_series(STUDY, SERIES)}
    assert through == {i.SOPInstanceUID: i.PixelData for i in direct.retrieve_series(STUDY, SERIES)}
    assert len(client.retrieve_series_metadata(STUDY, SERIES)) == len(through)
    one = next(iter(through))
    (frame,) = client.retrieve_instance_frames(STUDY, SERIES, one, [1], media_types=("application/octet-stream",))
    assert frame == through[one]
    new = write_series(tmp_path / "more", voxels(), AFFINES["oblique"], series="1.2.3.4", study="1.2.3")
    client.store_instances([pydicom.dcmread(file) for file in new])
    assert len(direct.retrieve_series("1.2.3", "1.2.3.4")) == len(new)
