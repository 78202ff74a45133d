"""Pacs: how the archive is asked, how this server signs in there, and what is made of wrong answers."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from pydicom import dcmread

from rayapp.config import Dicomweb
from rayapp.datastore import credentials
from rayapp.datastore.pacs import PacsClient, StoreRefused
from rayapp.errors import ArchiveAway, ArchiveSlow, NotFound
from tests.front import Asked, Front, front
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import SERIES, STUDY, write_series
from tests.orthanc import needs_orthanc, orthanc


@pytest.fixture
def asked() -> Iterator[Front]:
    with front() as standing:
        standing.answer = lambda _: web.json_response([])
        yield standing


def _pacs(asked: Front, **fields: Any) -> PacsClient:
    return PacsClient(Dicomweb(url=asked.url, **fields))


def _header(asked: Front) -> str | None:
    return asked.asked[-1].headers.get("Authorization")


@needs_orthanc
def test_an_archive_with_passwords_lets_in_who_knows_one(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", RegisteredUsers={"anna": "pass:wörd"}) as archive:
        known = PacsClient(Dicomweb(url=archive.url, user="anna", password="pass:wörd"))
        assert known.series({}) == {}
        files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
        known.store(dcmread(files[0]))
        known.store(dcmread(files[0]))
        assert len(known.instances(STUDY, SERIES)) == 1
        for wrong in ({"user": "anna", "password": "guess"}, {"token": "guess"}, {}):
            with pytest.raises(ArchiveAway, match="denies this server access"):
                PacsClient(Dicomweb(url=archive.url, **wrong)).series({})


def test_a_bearer_token_is_sent(asked: Front) -> None:
    _pacs(asked, token="abc").series({})
    assert _header(asked) == "Bearer abc"
    _pacs(asked).series({})
    assert _header(asked) is None


def test_services_have_their_own_places(asked: Front) -> None:
    _pacs(asked, qido="/q/rs/").series({"Modality": "CT"})
    assert asked.asked[-1].path.startswith("/q/rs/series?")


def test_client_credentials_are_exchanged_for_a_token_that_is_renewed_before_it_ends(
    asked: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Asked) -> web.StreamResponse:
        if request.path != "/token":
            return web.json_response([])
        return web.json_response({"access_token": f"t{len(asked.paths('/token', 'POST'))}", "expires_in": 3600})

    asked.answer = answer
    pacs = _pacs(asked, token_url=asked.url + "/token", client_id="rayapp", client_secret="s3", scope="dicom")
    for _ in range(2):
        pacs.series({"Modality": "CT"})
        assert _header(asked) == "Bearer t1"
    (first,) = [one for one in asked.asked if one.path == "/token"]
    assert parse_qs(first.body.decode()) == {"grant_type": ["client_credentials"], "scope": ["dicom"]}
    assert first.headers["Authorization"] == "Basic " + b64encode(b"rayapp:s3").decode()
    later = time.monotonic() + 3600 - credentials._RENEW_BEFORE_S + 1
    monkeypatch.setattr(credentials.time, "monotonic", lambda: later)
    pacs.series({"Modality": "CT"})
    assert _header(asked) == "Bearer t2"


def test_a_token_that_the_archive_refuses_before_it_ends_is_replaced_at_once(asked: Front) -> None:
    valid = "t1"

    def answer(request: Asked) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"access_token": valid, "expires_in": 3600})
        return web.json_response([], status=200 if request.headers["Authorization"] == f"Bearer {valid}" else 401)

    asked.answer = answer
    pacs = _pacs(asked, token_url=asked.url + "/token", client_id="rayapp", client_secret="s3")
    pacs.series({"Modality": "CT"})
    valid = "t2"
    pacs.series({"Modality": "CT"})
    assert _header(asked) == "Bearer t2"
    assert len(asked.paths("/token", "POST")) == 2


def test_an_archive_that_refuses_every_token_is_away_after_a_second_one(asked: Front) -> None:
    def answer(request: Asked) -> web.StreamResponse:
        return web.json_response({"access_token": "t"}) if request.path == "/token" else web.Response(status=401)

    asked.answer = answer
    with pytest.raises(ArchiveAway):
        _pacs(asked, token_url=asked.url + "/token", client_secret="s3").series({"Modality": "CT"})
    assert len(asked.paths("/token", "POST")) == 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=401),
        lambda: web.json_response({"error": "s3"}),
        lambda: web.Response(text="<html>s3"),
        lambda: web.json_response(["s3"]),
    ],
)
def test_without_a_token_the_archive_is_away_and_no_secret_is_told(asked: Front, answer: Any) -> None:
    asked.answer = lambda _: answer()
    with pytest.raises(ArchiveAway) as told:
        _pacs(asked, token_url=asked.url + "/token", client_secret="s3").series({})
    assert "s3" not in told.value.detail


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.Response(status=500, text="Doe^John"), ArchiveAway),
        (lambda: web.Response(text="<html>Doe^John</html>", content_type="text/html"), ArchiveAway),
        (lambda: web.json_response({"Doe^John": 1}), ArchiveAway),
        (lambda: web.Response(status=302, headers={"Location": "/elsewhere"}), ArchiveAway),
        (lambda: web.Response(status=404), NotFound),
    ],
)
def test_wrong_answers_are_told_without_what_is_in_them(asked: Front, answer: Any, error: type[Exception]) -> None:
    asked.answer = lambda _: answer()
    with pytest.raises(error) as told:
        _pacs(asked).series({"Modality": "CT"})
    assert "Doe" not in str(told.value)
    assert asked.paths("elsewhere") == []


def test_an_archive_that_says_nothing_is_slow(asked: Front) -> None:
    asked.way = "slow"
    with pytest.raises(ArchiveSlow):
        _pacs(asked, timeout=0.3).series({})


@pytest.mark.parametrize(
    ("status", "error"), [(409, StoreRefused), (400, StoreRefused), (503, ArchiveAway), (403, ArchiveAway)]
)
def test_a_refusal_for_good_is_told_from_one_for_now(
    asked: Front, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    asked.answer = lambda _: web.json_response({}, status=status)
    file = write_series(tmp_path / "series", voxels((2, 3, 1)), AFFINES["straight"])[0]
    with pytest.raises(error):
        _pacs(asked).store(dcmread(file))


def test_an_instance_that_neither_the_answer_nor_the_list_names_was_not_stored(
    asked: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.CONFIRM_S", 0.0)
    asked.answer = lambda request: web.json_response(
        [] if request.method == "GET" else {"00081199": {"vr": "SQ"}}, content_type="application/dicom+json"
    )
    file = write_series(tmp_path / "series", voxels((2, 3, 1)), AFFINES["straight"])[0]
    with pytest.raises(StoreRefused):
        _pacs(asked).store(dcmread(file))


def _listed(count: int) -> list[dict[str, Any]]:
    return [
        {"0020000E": {"vr": "UI", "Value": [f"1.2.{n}"]}, "00080060": {"vr": "CS", "Value": ["CT"]}}
        for n in range(count)
    ]


def _query(asked: Asked, name: str) -> int:
    return int(parse_qs(asked.path.partition("?")[2]).get(name, ["0"])[0])


@pytest.mark.parametrize("cap", [1, 2, 3, 7])
def test_an_archive_that_caps_its_answers_is_read_to_the_end(asked: Front, cap: int) -> None:
    """However short its pages are, they are not the last one while another brings something new."""
    found = _listed(7)

    def answer(request: Asked) -> web.StreamResponse:
        start = _query(request, "offset")
        page = found[start : start + max(cap, 2)]
        return web.json_response(page, content_type="application/dicom+json")

    asked.answer = answer
    assert len(_pacs(asked).series({"Modality": "CT"})) == 7


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_an_archive_that_ignores_offsets_is_asked_for_more_at_once(
    asked: Front, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.PAGE", 2)
    found = _listed(count)
    asked.answer = lambda request: web.json_response(
        found[: _query(request, "limit")], content_type="application/dicom+json"
    )
    assert len(_pacs(asked).series({"Modality": "CT"})) == count


def test_a_list_without_an_end_is_given_up(asked: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.MAX_RESULTS", 50)
    found = _listed(1000)

    def answer(request: Asked) -> web.StreamResponse:
        start = _query(request, "offset")
        return web.json_response(found[start : start + 5], content_type="application/dicom+json")

    asked.answer = answer
    with pytest.raises(ArchiveAway, match="does not end"):
        _pacs(asked).series({"Modality": "CT"})
    assert len(asked.asked) < 20


def test_an_archive_that_repeats_its_last_page_for_ever_is_read_to_its_end(asked: Front) -> None:
    found = _listed(6)
    asked.answer = lambda request: web.json_response(
        found[min(_query(request, "offset"), 3) :][:3], content_type="application/dicom+json"
    )
    assert len(_pacs(asked).series({"Modality": "CT"})) == 6


@pytest.mark.parametrize("charset", ["", "; charset=utf-8"])
@pytest.mark.parametrize("keeps_after", [0, 2, None])
def test_what_the_archive_accepts_is_asked_for_again(
    asked: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_after: int | None, charset: str
) -> None:
    """Some index with a delay; some answer 200 and keep nothing; of some the client cannot read the answer."""
    monkeypatch.setattr("rayapp.datastore.pacs.CONFIRM_S", 0.0)
    instance = dcmread(write_series(tmp_path / "series", voxels((2, 3, 1)), AFFINES["straight"])[0])
    uid = {"vr": "UI", "Value": [instance.SOPInstanceUID]}

    def answer(request: Asked) -> web.StreamResponse:
        if request.method == "POST":
            found: Any = {"00081199": {"vr": "SQ", "Value": [{"00081155": uid}]}}
        else:
            kept = keeps_after is not None and len(asked.paths("instances")) > keeps_after
            found = [{"00080018": uid}] if kept else []
        body = json.dumps(found).encode()
        return web.Response(body=body, headers={"Content-Type": f"application/dicom+json{charset}"})

    asked.answer = answer
    if keeps_after is None:
        with pytest.raises(StoreRefused if charset else ArchiveAway):
            _pacs(asked).store(instance)
    else:
        _pacs(asked).store(instance)


def test_an_archive_that_knows_neither_filters_nor_pages_is_read_once(
    asked: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.PAGE", 2)
    found = [
        {"0020000E": {"vr": "UI", "Value": [f"1.2.{n}"]}, "00080060": {"vr": "CS", "Value": [kind]}}
        for n, kind in enumerate(("CT", "MR", "US", "CT", "SEG"))
    ]
    asked.answer = lambda _: web.json_response(found, content_type="application/dicom+json")
    assert set(_pacs(asked).series({"Modality": "CT,SEG"})) == {"1.2.0", "1.2.3"}
    assert len(asked.asked) == 2
