"""Pages of other origins neither act through a server without keys nor frame it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
import requests

from deployments.origins import OwnPages
from tests.gateway.conftest import Serve, Served, write_label

FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "nonsense"},
    {"Origin": "http://[::1"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form that a page sends by itself
]
SIMPLE = {"Content-Type": "text/plain"}
"""A request of this type needs no preflight: a browser sends it before asking."""


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/batch/infer/bright?images=labeled", "/train/bright", "/reload"])
def test_a_foreign_page_changes_nothing_on_a_server_without_keys(gateway: Served, headers, path):
    answer = requests.post(gateway.url + path, headers={**SIMPLE, **headers}, data='{"label_tag": "final"}', timeout=20)
    assert answer.status_code == 403
    assert "cors_origins" in answer.json()["detail"]
    assert gateway.get("/jobs").json() == []


@pytest.mark.parametrize("headers", FOREIGN[:-1], ids=str)
def test_a_foreign_page_reads_nothing_either(gateway: Served, headers):
    assert gateway.get("/info/", headers=headers).status_code == 403


def test_a_final_label_is_not_replaced_by_a_form_of_a_foreign_page(gateway: Served, tmp_path):
    write_label(tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        saved = requests.put(f"{gateway.url}/datastore/label?image=ct_b&tag=final", files={"label": file}, timeout=20)
    assert saved.status_code == 200
    before = gateway.store.label("ct_b", "final").revision
    form = {"params": (None, '{"save_label": true, "label_tag": "final"}')}
    url = f"{gateway.url}/infer/bright?image=ct_b&output=json"
    assert requests.post(url, files=form, headers=FOREIGN[0], timeout=20).status_code == 403
    assert gateway.store.label("ct_b", "final").revision == before


def test_our_own_pages_and_programs_are_answered(gateway: Served):
    port = urlsplit(gateway.url).port
    own = [f"http://localhost:{port}", f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, *({"Origin": o} for o in own)):
        assert gateway.get("/info/", headers=headers).status_code == 200


def test_a_link_on_a_foreign_page_opens_our_start_page(gateway: Served):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert gateway.get("/", headers=headers).status_code == 200


def test_a_page_that_was_named_may_ask(serve: Serve):
    named = serve(cors_origins=("http://viewer.example",))
    assert named.get("/info/", headers={"Origin": "http://viewer.example"}).status_code == 200
    assert named.get("/info/", headers={"Origin": "http://other.example"}).status_code == 403


def test_with_keys_the_key_decides_and_not_the_page(keyed: Served):
    answer = requests.get(keyed.url + "/info/", headers={"Origin": "http://viewer.example"}, timeout=20)
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/", "/info/", "/nothing", "/datastore/image?image=ct_a"])
def test_no_foreign_page_frames_an_answer_and_no_browser_guesses_its_type(gateway: Served, path):
    headers = gateway.get(path).headers
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"].split("; ")
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://localhost", "localhost", 200),
        ("http://localhost", "localhost:80", 200),
        ("http://localhost:80", "127.0.0.1", 200),
        ("https://localhost", "localhost:80", 403),
        ("ftp://localhost", "localhost", 403),
    ],
)
def test_a_port_that_is_not_written_is_the_schemes_own(origin, host, status):
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"origin", origin.encode()), (b"host", host.encode())],
    }
    asyncio.run(OwnPages(app)(scope, None, send))
    assert sent[0]["status"] == status
