"""`POST /infer/{model}`, on the wire."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import socket
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.imaging.mask_codec import decode
from rayapp.imaging.reader import read_segmentation
from rayapp.protocol import MASK_MEDIA_TYPE, PARAMS_HEADER
from tests.gateway.conftest import AFFINE, SECRET, Served, voxels, write_image, write_label

BRIGHT = voxels() > 100


def raw(gateway: Served, head: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of the answer to these very bytes."""
    with socket.create_connection(gateway.address, timeout=10) as wire:
        wire.sendall(head.replace("\n", "\r\n").encode() + body)
        received = b""
        while piece := wire.recv(1 << 16):
            received += piece
    answer, _, rest = received.partition(b"\r\n\r\n")
    return answer, rest


def test_the_answer_has_the_layout_that_clients_parse_by_hand(gateway: Served):
    head, body = raw(gateway, "POST /infer/bright?image=ct_a HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:])}
    kind, _, boundary = headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    assert len(boundary) == 32
    assert int(headers["content-length"]) == len(body)
    assert "transfer-encoding" not in headers
    assert "content-encoding" not in headers
    mark = b"--" + boundary.encode()
    before, params, image, after = body.split(mark)
    assert (before, after) == (b"", b"--\r\n")
    assert params.startswith(
        b'\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n{'
    )
    described, _, mask = image.partition(b"\r\n\r\n")
    assert described.startswith(b'\r\nContent-Disposition: form-data; name="image"; filename="')
    assert described.endswith(b'.nii.gz"\r\nContent-Type: application/octet-stream')
    assert mask.endswith(b"\r\n")
    assert json.loads(params.partition(b"\r\n\r\n")[2])["label_names"] == {"background": 0, "bright": 1}
    assert np.array_equal(nibabel.Nifti1Image.from_bytes(gzip.decompress(mask[:-2])).get_fdata(), BRIGHT)


def test_the_mask_alone_is_a_bare_nrrd_for_ohif(gateway: Served, tmp_path: Path):
    answer = gateway.infer(
        "image=ct_a&output=image", {"result_extension": ".nrrd", "result_compress": False, "null": []}
    )
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].endswith('.nrrd"')
    assert answer.content.startswith(b"NRRD000")
    file = tmp_path / "mask.nrrd"
    file.write_bytes(answer.content)
    mask = read_segmentation(file, max_bytes=1 << 20)
    assert np.array_equal(mask.array, BRIGHT)
    assert np.allclose(mask.affine, AFFINE, atol=1e-4)


def test_the_json_alone_and_the_packed_box_can_be_had(gateway: Served):
    answer = gateway.infer("image=ct_a&output=json")
    assert answer.headers["Content-Type"] == "application/json"
    assert "latencies" in answer.json()
    answer = gateway.infer("image=ct_a&output=box")
    assert answer.headers["Content-Type"] == MASK_MEDIA_TYPE
    assert "latencies" in json.loads(answer.headers[PARAMS_HEADER])
    assert np.array_equal(decode(answer.content), BRIGHT)


def test_an_uploaded_image_is_used_and_not_kept(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "mine.nii.gz", 200 - voxels())
    with file.open("rb") as body:
        answer = gateway.infer("output=box", files={"file": body})
    assert np.array_equal(decode(answer.content), 200 - voxels() > 100)
    call = gateway.network.calls[-1]
    assert call.key == f"upload/{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert gateway.staged() == []
    assert call.path is not None
    assert not call.path.exists()


def test_an_uploaded_label_reaches_the_model_as_a_file(gateway: Served, tmp_path: Path):
    params = {"label": "bright", "label_info": [{"name": "bright", "id": 1}]}
    with write_label(tmp_path / "scribbles.nii.gz").open("rb") as body:
        assert gateway.infer("image=ct_a&output=json", params, files={"label": body}).status_code == 200
    call = gateway.network.calls[-1]
    assert call.mask is not None
    assert call.mask.name.endswith(".nii.gz")
    assert call.params["label"] == "bright"
    assert gateway.staged() == []


def test_a_session_comes_before_the_image_whatever_that_is_called(gateway: Served, tmp_path: Path):
    with write_image(tmp_path / "volume.nii.gz").open("rb") as body:
        session = gateway.put("/session/", files={"files": body}).json()["session_id"]
    answer = gateway.infer(f"image=Volume: 1/2&session_id={session}&output=box", {"save_label": True})
    assert np.array_equal(decode(answer.content), BRIGHT)
    assert gateway.network.calls[-1].key == f"session/{session}"
    missing = gateway.infer("session_id=00000000-0000-4000-8000-000000000000")
    assert missing.status_code == 404


def test_no_key_of_params_names_an_image_or_a_model(gateway: Served):
    params = {"image": "/etc/passwd", "model": "other", "session": "/etc", "path": "/etc/passwd", "client_id": "c"}
    assert gateway.infer("image=ct_a&output=json", params).status_code == 200
    call = gateway.network.calls[-1]
    assert (call.key, call.model, call.path, dict(call.params)) == ("ct_a", "bright", None, {"client_id": "c"})
    assert gateway.infer("", {"image": "/etc/passwd"}).status_code == 400


def test_a_space_in_a_models_name_may_be_a_plus(gateway: Served):
    for name in ("bright+spots", "bright%20spots"):
        assert gateway.post(f"/infer/{name}?image=ct_a&output=json").status_code == 200
        assert gateway.network.calls[-1].model == "bright spots"


def test_a_prediction_is_kept_when_asked_for(gateway: Served):
    query = "image=ct_b&output=json"
    assert gateway.infer(query, {"save_label": True}).status_code == 200
    assert gateway.infer(query, {"save_label": "true", "label_tag": "second"}).status_code == 200
    first, second = gateway.store.label("ct_b", "original"), gateway.store.label("ct_b", "second")
    assert (first.info["model"], first.info["params"]["label_names"]) == ("bright", {"background": 0, "bright": 1})
    assert np.array_equal(read_segmentation(second.path, max_bytes=1 << 20).array, BRIGHT)
    assert gateway.store.revisions("ct_b", "second")[0].model_version == "v1"


@pytest.mark.parametrize(
    ("query", "params", "status", "said"),
    [
        ("", "{}", 400, "no image given"),
        ("image=nothing", "{}", 404, "no image 'nothing'"),
        ("image=../ct_a", "{}", 400, "not a valid name"),
        ("image=%2Fetc%2Fpasswd", "{}", 400, "not a valid name"),
        ("image=ct_a", "{", 400, "params is not valid JSON"),
        ("image=ct_a", "[1]", 400, "params must be a JSON object {…}, not list"),
        ("image=ct_a", '{"x": NaN}', 400, "params is not valid JSON"),
        ("image=ct_a", '{"x": 1e999}', 400, "params is not valid JSON"),
        ("image=ct_a", "[" * 100_000, 400, "params is not valid JSON"),
        ("image=ct_a", {"bright": [[1, 2, 99]]}, 400, "outside the image"),
        ("image=ct_a", {"bright": [[1, 2]]}, 400, "three whole numbers"),
        ("image=ct_a", {"bright": "here"}, 400, "must be a list"),
        ("image=ct_a", {"result_extension": "/../x"}, 400, "result_extension must be one of .nii.gz"),
        ("image=ct_a", {"result_extension": [".nrrd"]}, 400, "result_extension must be one of"),
        ("image=ct_a", {"save_label": True, "label_tag": "../../x"}, 400, "label_tag '../../x' is not a valid name"),
        ("image=ct_a&output=box", {"save_label": True}, 400, "save_label cannot be combined with output=box"),
        ("image=ct_a&output=dicom_seg", "{}", 400, "not a DICOM series"),
        ("image=ct_a&output=tiff", "{}", 422, "output"),
        ("session_id=../../x", "{}", 404, "no session"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(gateway: Served, query: str, params: object, status: int, said: str):
    answer = gateway.infer(query, params)
    assert answer.status_code == status
    assert said in json.dumps(answer.json()["detail"], ensure_ascii=False)
    assert gateway.staged() == []


def test_an_unknown_model_is_answered_with_the_known_ones(gateway: Served):
    for path in ("/infer/nothing?image=ct_a", "/infer/%2E%2E?image=ct_a", "/infer/a%2Fb?image=ct_a"):
        assert gateway.post(path).status_code in (400, 404)
    assert "bright, bright spots" in gateway.post("/infer/nothing?image=ct_a").json()["detail"]


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("x.nii.gz", b"no image at all", ""),
        ("x.exe", b"MZ", "not of a supported format"),
        ("../../etc/passwd", b"root", "not of a supported format"),
        ("cut.nii.gz", None, ""),
    ],
)
def test_an_upload_that_is_no_image_is_refused_and_not_kept(
    gateway: Served, tmp_path: Path, name: str, body: bytes | None, said: str
):
    body = write_image(tmp_path / "whole.nii.gz").read_bytes()[:-200] if body is None else body
    answer = gateway.infer("output=json", files={"file": (name, body)})
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert gateway.staged() == []


def test_a_busy_server_says_when_to_come_back(gateway: Served):
    answer = gateway.infer("image=ct_a", {"test": "busy"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_what_nobody_foresaw_is_an_incident_in_the_log_without_its_text(
    gateway: Served, caplog: pytest.LogCaptureFixture
):
    answer = gateway.infer("image=ct_a", {"test": "break"})
    assert answer.status_code == 500
    incident = answer.json()["detail"].rpartition(" ")[2]
    assert incident in caplog.text
    assert "RuntimeError" in caplog.text
    assert SECRET not in answer.text + caplog.text


def test_a_client_that_hangs_up_cancels_its_inference(gateway: Served):
    body = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"test": "hang"}\r\n--b--\r\n'
    wire = http.client.HTTPConnection(*gateway.address, timeout=10)
    wire.request("POST", "/infer/bright?image=ct_a", body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert gateway.network.held.wait(10)
    assert not gateway.network.cancelled.is_set()
    wire.close()
    assert gateway.network.cancelled.wait(10)
