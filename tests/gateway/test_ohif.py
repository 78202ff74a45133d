"""The viewer at /ohif/: its files, our own beside them, and nothing else of the disk."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from pathlib import Path

import pytest

import rayapp.web
from rayapp.downloads.ohif import MARK, VERSION
from rayapp.protocol import Route, StreamEvent
from tests.gateway.conftest import Serve, Served


@pytest.fixture(scope="module")
def viewer(serve: Serve) -> Served:
    served = serve(auth="token")  # a page that is opened carries no key
    folder = served.settings.ohif
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>OHIF</title>")
    (folder / "app.bundle.0123456789abcdef.js").write_text("1")
    (folder / "0123456789abcdef.wasm").write_bytes(b"\0asm")
    (folder / "app-config.js").write_text("the build's own")
    (folder / "assets" / "a.png").write_bytes(b"PNG")
    (folder / MARK).write_text(json.dumps({"version": VERSION}))
    (folder.parent / "secret.js").write_text("secret")
    return served


@pytest.mark.parametrize("path", ["/ohif", "/ohif/", "/ohif/rayapp", "/ohif/viewer", "/ohif/index.html"])
def test_every_page_of_the_viewer_is_the_viewer(viewer: Served, path: str):
    answer = viewer.get(path)
    assert answer.text == "<title>OHIF</title>"
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-cache"


def test_the_viewer_runs_no_script_of_elsewhere_and_of_inline_scripts_only_its_own(viewer: Served):
    page = viewer.settings.ohif / "inline.html"
    page.write_text('<script>a()</script><script type="module">\nb()\n</script><script src="c.js"></script>')
    rules = dict(
        rule.split(" ", 1) for rule in viewer.get("/ohif/inline.html").headers["Content-Security-Policy"].split("; ")
    )
    digests = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"a()", b"\nb()\n")]
    assert rules["script-src"].split() == ["'self'", "'unsafe-eval'", *(f"'sha256-{digest}'" for digest in digests)]
    assert rules["default-src"] == rules["frame-ancestors"] == "'self'"
    for path in ("", "rayapp", "index.html"):
        assert "script-src 'self' 'unsafe-eval';" in viewer.get(f"/ohif/{path}").headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "kind", "cached"),
    [
        ("app.bundle.0123456789abcdef.js", "text/javascript", "immutable"),
        ("0123456789abcdef.wasm", "application/wasm", "immutable"),
        ("assets/a.png", "image/png", "no-cache"),
        ("rayapp/extension.mjs", "text/javascript", "no-cache"),
        ("rayapp/mask.mjs", "text/javascript", "no-cache"),
        ("app-config.js", "text/javascript", "no-cache"),
    ],
)
def test_files_have_their_type_and_are_cached_for_ever_when_their_name_holds_their_digest(
    viewer: Served, path: str, kind: str, cached: str
):
    answer = viewer.get(f"/ohif/{path}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].split(";")[0] == kind
    assert cached in answer.headers["Cache-Control"]
    made_anew = path == "app-config.js"
    assert ("ETag" in answer.headers) is not made_anew
    if not made_anew:
        again = viewer.get(f"/ohif/{path}", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/ohif/../secret.js",
        "/ohif/%2e%2e/secret.js",
        "/ohif/..%2fsecret.js",
        "/ohif/assets/..%2f..%2fsecret.js",
        "/ohif//secret.js",
        "/ohif/rayapp/../../secret.js",
        "/ohif/rayapp/..%2f__init__.py",
        "/ohif/rayapp/%2fetc%2fhostname.js",
        "/ohif/missing.js",
    ],
)
def test_nothing_outside_is_served(viewer: Served, path: str):
    connection = http.client.HTTPConnection(*viewer.address)  # which sends paths as they are
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 404
    assert b"secret" not in body
    assert b"detail" in body


def test_the_configuration_is_made_for_this_server(viewer: Served):
    text = viewer.get("/ohif/app-config.js").text
    config = json.loads(text.removeprefix("window.config = ").rstrip(";\n"))
    assert config["routerBasename"] == "/ohif/"
    assert config["rayapp"]["keys"] is True
    assert config["rayapp"]["routes"] == {route.name.lower(): route.value for route in Route}
    assert config["rayapp"]["streamEvents"] == {event.name.lower(): event.value for event in StreamEvent}
    assert config["extensions"] == ["/ohif/rayapp/extension.mjs"]
    (source,) = config["dataSources"]
    assert source["configuration"]["wadoRoot"] == "/dicom-web"
    for module in (*config["extensions"], *config["modes"]):
        assert viewer.get(module).status_code == 200


def test_another_build_is_not_given_an_extension_written_for_this_one(serve: Serve):
    other = serve()
    other.settings.ohif.mkdir(parents=True)
    (other.settings.ohif / "index.html").write_text("other")
    config = json.loads(other.get("/ohif/app-config.js").text.removeprefix("window.config = ").rstrip(";\n"))
    assert config["extensions"] == config["modes"] == []
    assert config["dataSources"][0]["configuration"]["qidoRoot"] == "/dicom-web"


def test_the_panel_names_routes_that_there_are_and_no_path():
    for module in (Path(rayapp.web.__file__).parent / "ohif").glob("*.mjs"):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", module.read_text(), flags=re.DOTALL)
        named = re.findall(r"path\('(\w+)'", text)
        assert {*named} <= {route.name.lower() for route in Route}, module.name
        assert not re.findall(r"""['"`]/[a-z]+[/'"`]""", text), module.name


def test_the_panel_takes_the_names_of_events_from_the_server():
    text = (Path(rayapp.web.__file__).parent / "ohif" / "server.mjs").read_text()
    named = re.findall(r"(?:kind|event)\b[^\n;]*['\"`](\w+)['\"`]", text)
    assert not {*named} & {event.value for event in StreamEvent}
