"""Pages of other origins can neither act through the server nor frame it, and the panel works from other machines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from rayapp.protocol import Role
from tests.browser.conftest import Viewer
from tests.gateway.conftest import AFFINE, SHAPE, Serve, voxels

pytestmark = pytest.mark.browser

# What a page can send without asking first: simple requests, which a browser sends whatever the server says of CORS.
_ATTACK = """async url => {
    const answers = [];
    const send = async (path, options) => {
        try {
            const answer = await fetch(url + path, options);
            answers.push(answer.type === 'opaque' ? 'sent' : answer.status);
        } catch (error) {
            answers.push('refused');
        }
    };
    const text = JSON.stringify({ label_tag: 'final' });
    const form = new FormData();
    form.append('params', JSON.stringify({ save_label: true, label_tag: 'final' }));
    await send('/batch/infer/bright?images=labeled', { method: 'POST', mode: 'no-cors', body: text });
    await send('/train/bright', { method: 'POST', mode: 'no-cors', body: text });
    await send('/infer/bright?image=ct_a&output=json', { method: 'POST', mode: 'no-cors', body: form });
    await send('/datastore/label?id=ct_a&tag=final', { method: 'DELETE' });
    await send('/info/', {});
    navigator.sendBeacon(url + '/batch/infer/bright?images=labeled', text);
    const frame = document.createElement('iframe');
    const loaded = new Promise(resolve => (frame.onload = resolve));
    frame.src = url + '/ohif/';
    document.body.append(frame);
    await loaded;
    return answers;
}"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """Port of a second server, with a page of its own."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><body>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1"])
def test_a_page_of_another_origin_changes_nothing_reads_nothing_and_frames_nothing(
    serve: Serve, viewer: Viewer, elsewhere: int, host: str
):
    served = serve(ohif=ohif_folder())
    viewer.page.goto(f"http://{host}:{elsewhere}/")
    answers = viewer.page.evaluate(_ATTACK, served.url)
    assert answers == ["sent", "sent", "sent", "refused", "refused"]  # sent, as nothing can hinder a page from that
    assert served.get("/jobs").json() == []
    assert served.store.labels("ct_a") == {}
    assert served.network.calls == []
    (frame,) = [one for one in viewer.page.frames if one.parent_frame]
    assert frame.url.startswith("chrome-error:"), "the browser shows no page of ours in it"
    viewer.wrong.clear()  # what was refused


def test_a_name_that_resolves_to_this_machine_is_not_served_without_keys(serve: Serve, viewer: Viewer):
    port = urlsplit(serve().url).port
    answer = viewer.page.goto(f"http://rebound.test:{port}/info/")
    assert answer is not None
    assert answer.status == 400
    viewer.wrong.clear()  # that


def test_the_panel_works_on_plain_http_from_another_machine(serve: Serve, viewer: Viewer):
    keyed = serve(auth="token", ohif=ohif_folder())
    key = keyed.users.add("anna", Role.ANNOTATOR)
    viewer.page.on("dialog", lambda dialog: dialog.accept(key))
    said = viewer.open(f"http://lan.test:{urlsplit(keyed.url).port}", "ct_a")
    assert said == "ready; this image has no final label yet"
    assert viewer.page.evaluate("[isSecureContext, typeof crypto.randomUUID]") == [False, "undefined"]
    bright = np.argwhere(voxels() > 100)
    middle = bright[np.abs(bright - np.array(SHAPE) / 2).sum(1).argmin()]
    world = index_to_mm(AFFINE, middle) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert viewer.click(world).startswith("bright at ")
    shown, values = viewer.voxels(keyed.settings.studies / "ct_a.nii.gz")
    np.testing.assert_array_equal(values, voxels())
    np.testing.assert_array_equal(shown, voxels() > 100)
    assert viewer.press("save") == "saved"
    assert keyed.store.revisions("ct_a", "final")[-1].user == "anna"
    # OHIF's own start script asks for service workers, which a page has on https and on this machine only.
    assert all("getRegistrations" in told for told in viewer.wrong)
    viewer.wrong.clear()
