"""`/session/` on the wire; what a session is, is tested with `rayapp.datastore.sessions`."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from tests.gateway.conftest import Served, voxels, write_image

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def create(gateway: Served, *files: tuple[str, bytes], query: str = "") -> requests.Response:
    return gateway.put(f"/session/{query}", files=[("files", file) for file in files], data={"client_id": "c"})


def left_behind(gateway: Served) -> list[str]:
    return [path.name for path in (gateway.settings.workspace / "sessions" / ".staging").iterdir()]


def test_a_session_is_made_shown_fetched_and_ended(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "volume.nii.gz")
    answer = create(gateway, ("/home/jane/volume.nii.gz", file.read_bytes()), query="?expiry=100")
    assert answer.status_code == 200
    session, info = answer.json()["session_id"], answer.json()["session_info"]
    assert info["name"] == session
    assert info["expiry"] == 100
    assert info["create_ts"] <= info["last_access_ts"]
    assert info["meta"] == {}
    assert info["image"].endswith("volume.nii.gz")
    assert gateway.get(f"/session/{session}").json() == info
    back = gateway.get(f"/session/{session}?image=true")
    assert back.content == file.read_bytes()
    assert back.headers["Content-Disposition"] == 'attachment; filename="volume.nii.gz"'
    assert gateway.get(f"/session/{session}?update_ts=true").json()["last_access_ts"] >= info["last_access_ts"]
    assert gateway.send("DELETE", f"/session/{session}").json()["name"] == session
    for method in ("GET", "DELETE"):
        assert gateway.send(method, f"/session/{session}").status_code == 404
    assert left_behind(gateway) == []


def test_an_archive_is_unpacked_when_asked_to(gateway: Served, tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(write_image(tmp_path / "inside.nii.gz"), "folder/inside.nii.gz")
    answer = create(gateway, ("a.zip", packed.getvalue()), query="?uncompress=true")
    session = answer.json()["session_id"]
    assert gateway.infer(f"session_id={session}&output=json").status_code == 200
    assert create(gateway, ("a.zip", packed.getvalue())).status_code == 422


@pytest.mark.parametrize(
    ("files", "query", "status"),
    [
        ([("x.nii.gz", b"no image")], "", 422),
        ([("x.nii.gz", b"")], "", 422),
        ([("a.dcm", b"x"), ("b.dcm", b"y")], "", 422),
        ([("..", b"x")], "", 422),
        ([("x.zip", b"PK")], "?uncompress=true", 422),
        ([("x.nii.gz", b"x")], "?expiry=-1", 422),
        ([("x.nii.gz", b"x")], "?expiry=soon", 422),
    ],
)
def test_what_is_no_image_makes_no_session(gateway: Served, files: list[tuple[str, bytes]], query: str, status: int):
    before = sorted((gateway.settings.workspace / "sessions").iterdir())
    assert create(gateway, *files, query=query).status_code == status
    assert sorted((gateway.settings.workspace / "sessions").iterdir()) == before
    assert left_behind(gateway) == []


def test_a_session_needs_files(gateway: Served):
    answer = gateway.put("/session/", data={"client_id": "c"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "files"]


@pytest.mark.parametrize("name", [UNKNOWN, "x", "..%2F..%2Fetc", UNKNOWN.replace("-", ""), ".staging"])
def test_no_other_name_is_a_session(gateway: Served, name: str):
    for method in ("GET", "DELETE"):
        answer = gateway.send(method, f"/session/{name}")
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/json"


def test_a_volume_over_the_cap_is_refused_before_it_is_allocated(gateway: Served, tmp_path: Path):
    header = nibabel.Nifti1Image(voxels(), np.eye(4)).header
    header["dim"][1:4] = 3000
    answer = create(gateway, ("bomb.nii.gz", gzip.compress(header.binaryblock + bytes(100))))
    assert answer.status_code in (413, 422)
    assert left_behind(gateway) == []
