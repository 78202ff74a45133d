"""The server's own pages: info, next image, jobs, logs, OpenAPI, CORS, and routes that do not exist."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import requests

from rayapp.runtime.logs import log_file
from tests.gateway.conftest import Serve, Served, write_label


def test_info_has_what_the_clients_read(gateway: Served):
    info = gateway.get("/info/").json()
    assert "config" not in info
    assert info["labels"] == ["background", "bright"]
    assert info["models"]["bright"]["labels"] == {"background": 0, "bright": 1}
    assert {"type", "description", "dimension", "config"} <= set(info["models"]["bright"])
    assert info["broken_models"] == info["trainers"] == info["train_stats"] == {}
    assert {"tta", "epistemic", "dice", "sum"} == set(info["scoring"])
    assert {"first", "last", "random", "foreground_random", "tta", "epistemic"} <= set(info["strategies"])
    status = gateway.store.status()
    assert set(info["datastore"].pop("storage")) == set(status.pop("storage"))
    assert info["datastore"] == status


def test_the_start_page_knows_whether_keys_are_asked_for_and_runs_its_own_script_alone(gateway: Served, keyed: Served):
    for served, keys in ((gateway, "no"), (keyed, "yes")):
        answer = requests.get(served.url + "/", timeout=20)  # without a key: it holds nothing of any patient
        facts = re.search('<body data-viewer="(.*)" data-keys="(.*)" data-archive="(.*)">', answer.text)
        assert facts is not None
        assert facts.groups() == ("no", keys, "no")
        (script,) = re.findall('<script type="module">(.*?)</script>', answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'self' 'sha256-{digest}';" in answer.headers["Content-Security-Policy"]
        assert all(word not in answer.text for word in ("ct_a", str(served.settings.studies)))


def test_info_counts_a_label_as_soon_as_it_is_saved(gateway: Served, tmp_path: Path):
    before = gateway.get("/info/").json()["datastore"]["label_tags"].get("counted", 0)
    gateway.save("ct_a", write_label(tmp_path / "label.nii.gz"), "counted")
    assert gateway.get("/info/").json()["datastore"]["label_tags"]["counted"] == before + 1


def test_the_next_image_is_handed_out_and_that_is_kept(gateway: Served):
    sample = gateway.post("/activelearning/first", json={"client_id": "c", "label_tag": "mine"}).json()
    assert (sample["id"], sample["name"]) == ("ct_a", "ct_a.nii.gz")
    assert Path(sample["path"]).is_file()
    assert gateway.store.image("ct_a").info["strategy"]["first"]["client_id"] == "c"
    assert gateway.post("/activelearning/random").json()["id"].startswith("ct_")


def test_nothing_left_is_an_empty_answer(gateway: Served, tmp_path: Path):
    for image in ("ct_a", "ct_b", "ct_ü"):
        gateway.save(image, write_label(tmp_path / "label.nii.gz"), "all")
    for strategy in ("first", "random"):
        assert gateway.post(f"/activelearning/{strategy}", json={"label_tag": "all"}).json() == {}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("nothing", "{}", 404, "there are: first, last, random"),
        ("..%2Fx", "{}", 404, "no such route"),
        ("first", "[]", 400, "the body must be a JSON object"),
        ("first", "{", 400, "the body is not valid JSON"),
        ("first", '{"label_tag": "../x"}', 400, "label_tag '../x' is not a valid name"),
    ],
)
def test_what_is_wrong_with_a_request_for_the_next_image_is_said(
    gateway: Served, path: str, body: str, status: int, said: str
):
    answer = gateway.post(f"/activelearning/{path}", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/train/", "/scoring/", "/batch/infer"])
def test_nothing_runs_in_the_background(gateway: Served, path: str):
    for query in ("", "?check_if_running=true"):
        answer = gateway.get(path + query)
        assert answer.status_code == 404
        assert "Tasks" in answer.json()["detail"]
    assert gateway.get(path + "?all=true").json() == []
    assert gateway.get(path + "?all=sometimes").status_code == 422
    assert gateway.send("DELETE", path).text == "null"


def test_what_cannot_be_started_is_answered_with_what_there_is(gateway: Served):
    assert "there are: none" in gateway.post("/train/x").json()["detail"]
    assert "there are: tta, epistemic, dice, sum" in gateway.post("/scoring/x").json()["detail"]
    assert "bright" in gateway.post("/batch/infer/x").json()["detail"]
    assert gateway.post("/batch/infer/bright?images=most").status_code == 400
    assert gateway.post("/train/").json() == {}


@pytest.fixture
def log(gateway: Served) -> Path:
    path = log_file(gateway.settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"line {number} <b>\n" for number in range(30_000)))
    return path


def test_the_end_of_the_log_is_a_page_or_text(gateway: Served, log: Path):
    answer = gateway.get("/logs/?lines=2&text=true")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text == "line 29998 <b>\nline 29999 <b>\n"
    assert gateway.get("/logs/?lines=2&html=false").text == answer.text
    page = gateway.get("/logs/?lines=1&refresh=1")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "line 29999 &lt;b&gt;" in page.text
    assert 'content="3"' in page.text
    assert len(gateway.get("/logs/?text=1").text.splitlines()) == 300
    assert gateway.get("/logs/?lines=20000&text=1").text == "".join(log.read_text().splitlines(keepends=True)[-20000:])
    for lines in ("0", "-1"):
        assert gateway.get(f"/logs/?lines={lines}&text=true").text == log.read_text()
    assert gateway.get("/logs/?lines=many").status_code == 422


def test_no_log_is_told(gateway: Served):
    log_file(gateway.settings).unlink(missing_ok=True)
    for lines in (5, 0):
        assert gateway.get(f"/logs/?lines={lines}").status_code == 404


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has nvidia-smi")
def test_no_gpu_tool_is_told(gateway: Served):
    answer = gateway.get("/logs/gpu")
    assert (answer.status_code, answer.json()) == (404, {"detail": "this machine has no nvidia-smi"})


def test_the_first_page_and_the_docs_need_nothing_from_elsewhere(gateway: Served):
    for path in ("/", "/docs"):
        page = gateway.get(path)
        assert page.status_code == 200
        assert not re.search(r'(src|href)="(https?:)?//', page.text)
    for route in gateway.get("/openapi.json").json()["paths"]:
        assert route in page.text
    assert gateway.get("/favicon.ico").headers["Content-Type"] == "image/svg+xml"


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/ohif/", "OHIF"),
        ("GET", "/ohif/assets/x.js", "OHIF"),
        ("GET", "/proxy/dicom/qido/studies", "DICOMweb"),
        ("POST", "/proxy/dicom/wado/studies", "DICOMweb"),
        ("POST", "/infer/wsi/x", "whole-slide"),
        ("POST", "/infer/wsi_v2/x", "whole-slide"),
        ("GET", "/nothing/here", "/docs"),
        ("GET", "/static/x.js", "/docs"),
    ],
)
def test_what_is_not_served_is_told(gateway: Served, method: str, path: str, said: str):
    answer = gateway.send(method, path)
    assert answer.status_code == 404
    assert said in answer.json()["detail"]


def test_a_method_that_a_route_lacks_is_told(gateway: Served):
    answer = gateway.send("PATCH", "/info/")
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]
    assert "PATCH" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/info", "/datastore", "/train", "/scoring", "/logs", "/batch/infer/", "/docs/"])
def test_a_slash_more_or_less_is_no_redirect(gateway: Served, path: str):
    other = path[:-1] if path.endswith("/") else path + "/"
    with_slash, without = (gateway.get(p, allow_redirects=False) for p in (path, other))
    assert with_slash.status_code == without.status_code != 307
    if path != "/logs":  # the server writes on between the two answers, so its sizes on disk may differ too
        assert without_sizes(with_slash) == without_sizes(without)


def without_sizes(answer: requests.Response) -> object:
    """What `answer` says, without the bytes that the server's folders hold at the moment."""
    if "json" not in answer.headers["Content-Type"]:
        return answer.text
    said = answer.json()
    if isinstance(said, dict):
        for part in (said, said.get("datastore", {})):
            part.pop("storage", None)
    return said


def preflight(server: Served, origin: str) -> requests.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-any"}
    return server.send("OPTIONS", "/infer/bright", headers={"Origin": origin, **asked})


def test_browsers_with_a_page_from_elsewhere_may_ask_where_keys_are_needed(keyed: Served):
    origin = "http://viewer.example"
    answer = preflight(keyed, origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Max-Age"] == "600"
    for path, status in (("/info/", 401), ("/nothing", 404)):
        refused = requests.get(keyed.url + path, headers={"Origin": origin}, timeout=20)
        assert (refused.status_code, "Access-Control-Allow-Origin" in refused.headers) == (status, True)


def test_without_keys_only_our_own_pages_and_those_that_were_named_may_ask(gateway: Served, serve: Serve):
    port = urlsplit(gateway.url).port
    for origin in (f"http://localhost:{port}", f"http://127.0.0.1:{port}", f"http://[::1]:{port}"):
        answer = preflight(gateway, origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
    foreign = ("http://viewer.example", "http://localhost.example", "http://localhost:1", f"http://localhost:{port}.x")
    for origin in (*foreign, "null"):
        assert preflight(gateway, origin).status_code == 403
        assert "Access-Control-Allow-Origin" not in gateway.get("/info/", headers={"Origin": origin}).headers
    named = serve(cors_origins=("http://viewer.example",))
    assert preflight(named, "http://viewer.example").status_code == 200
    assert preflight(named, "http://other.example").status_code == 403


def resolved(value: Any) -> Any:
    """A schema with OpenAPI's references as JSON Schema's."""
    return json.loads(json.dumps(value).replace("#/components/schemas/", "#/$defs/"))


@pytest.fixture(scope="module")
def schema(gateway: Served) -> dict[str, Any]:
    """The gateway's OpenAPI description, with references as in JSON Schema."""
    described: dict[str, Any] = resolved(gateway.get("/openapi.json").json())
    return described


CALLS = [
    ("get", "/info/", "", {}),
    ("post", "/reload", "", {}),
    ("get", "/datastore/", "", {}),
    ("get", "/datastore/", "?output=all", {}),
    ("get", "/datastore/", "?output=train", {}),
    ("get", "/datastore/", "?output=x", {}),
    ("get", "/datastore/image", "?image=ct_a", {}),
    ("get", "/datastore/image", "?image=none", {}),
    ("get", "/datastore/image/info", "?image=ct_a", {}),
    ("put", "/datastore/image/info", "?image=ct_a", {"data": {"info": "{}"}}),
    ("put", "/datastore/image", "?image=ct_a", {}),
    ("put", "/datastore/image", "?image=ct_a", {"files": {"file": ("x.nrrd", b"x")}}),
    ("put", "/datastore/image", "?image=..", {}),
    ("put", "/datastore/label", "?image=none", {}),
    ("delete", "/datastore/label", "?id=ct_a&tag=none", {}),
    ("get", "/datastore/dataset", "?limit_cases=0", {}),
    ("post", "/infer/{model}", "?image=ct_a", {}),
    ("post", "/infer/{model}", "?image=ct_a&output=json", {}),
    ("post", "/infer/{model}", "?image=ct_a&output=image", {}),
    ("post", "/infer/{model}", "?image=ct_a&output=box", {}),
    ("post", "/infer/{model}", "?image=none", {}),
    ("post", "/activelearning/{strategy}", "", {}),
    ("get", "/train/", "", {}),
    ("get", "/train/", "?all=1", {}),
    ("delete", "/train/", "", {}),
    ("post", "/batch/infer/{model}", "", {}),
    ("get", "/model/info/{model}", "", {}),
    ("get", "/model/{model}", "", {}),
    ("get", "/session/{session_id}", "", {}),
    ("put", "/session/", "", {}),
    ("get", "/logs/gpu", "", {}),
]


@pytest.mark.parametrize(("method", "path", "query", "given"), CALLS)
def test_openapi_tells_what_is_answered(
    gateway: Served, schema: dict[str, Any], log: Path, method: str, path: str, query: str, given: dict[str, Any]
):
    answers = schema["paths"][path][method]["responses"]
    answer = gateway.send(
        method.upper(), path.format(model="bright", strategy="first", session_id="x") + query, **given
    )
    told = answers[str(answer.status_code)]
    media = answer.headers["Content-Type"].partition(";")[0]
    assert media in told["content"]
    if media == "application/json":
        wanted = told["content"][media].get("schema", {})
        jsonschema.validate(answer.json(), {**wanted, "$defs": schema["components"]["schemas"]})


def test_every_route_of_the_contract_is_in_openapi_with_its_errors(schema: dict[str, Any]):
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert "200" in operation["responses"]
            if path in ("/healthz", "/readyz"):  # for supervisors, which have no key
                assert "security" not in operation
                continue
            assert {"401", "403", "503"} <= set(operation["responses"]), (path, method)
            assert operation["security"] == [{"HTTPBearer": []}]
            if method in ("put", "post") and "requestBody" in operation:
                assert "413" in operation["responses"], (path, method)
