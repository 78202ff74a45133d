"""A real full disk under a gateway: 507 and a clear line, nothing left behind, and work goes on once there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.datastore.test_odd_file_systems import ALONE, MAY_MOUNT

SCRIPT = """
import io, json, subprocess, sys
from pathlib import Path
import nibabel, numpy as np
from rayapp.config import Settings
from tests.gateway import conftest
from tests.in_process import InProcess

folder = Path(sys.argv[1])
(folder / "app").mkdir()
(folder / "app" / "main.py").write_text(conftest.APP)
for name in ("studies", "workspace"):
    (folder / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", folder / name], check=True)
conftest.write_image(folder / "studies" / "ct_a.nii.gz", np.zeros((32, 32, 32), np.int16))
settings = Settings(studies=folder / "studies", workspace=folder / "workspace", app=str(folder / "app"),
                    max_body=8 << 20, max_volume=8 << 20)
rng = np.random.default_rng(1)

def file(kind):
    path = folder / f"it{kind}"
    nibabel.Nifti1Image(rng.integers(0, 2, (32, 32, 32), dtype=np.uint8), conftest.AFFINE).to_filename(path)
    return path

def fill(name):
    with (folder / name / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass

answers = []

def note(what, answer):
    try:
        detail = answer.json()
    except ValueError:
        detail = None
    answers.append([what, answer.status_code, detail, answer.headers.get("Retry-After")])

def put(path, name):
    with name.open("rb") as body:
        return served.put(path, files={"file": body})

with conftest._gateway(settings, InProcess()) as served:
    served.get("/").raise_for_status()
    label, image = file(".nii.gz"), file(".nii")
    note("first save", served.save("ct_a", label))
    fill("studies")
    for again in range(3):
        note("save", served.save("ct_a", file(".nii")))
        note("upload", put("/datastore/?image=new", image))
    note("keep", served.infer("image=ct_a&output=json", {"save_label": True}))
    note("info", served.put("/datastore/image/info?image=ct_a", data={"info": '{"a": 1}'}))
    fill("workspace")
    with image.open("rb") as body:
        note("session", served.put("/session/", files={"files": body}))
    note("read", served.get("/datastore/"))
    left = served.staged()
    sessions = [str(path) for path in (folder / "workspace" / "sessions").rglob("*") if path.is_file()]
    for name in ("studies", "workspace"):
        (folder / name / "filler").unlink()
    note("save with room", served.save("ct_a", file(".nii.gz")))
    note("upload with room", put("/datastore/?image=new", image))
    with image.open("rb") as body:
        note("session with room", served.put("/session/", files={"files": body}))
    revisions = len(served.store.revisions("ct_a", "final"))
    print(json.dumps({"answers": answers, "left": left, "sessions": sessions, "revisions": revisions}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not MAY_MOUNT:
        pytest.skip("mounting is not permitted here")
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", SCRIPT, tmp_path_factory.mktemp("disk")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_everything_that_cannot_be_written_is_answered_507_with_the_reason(seen: dict[str, Any]):
    refused = [answer for answer in seen["answers"] if answer[0] in ("save", "upload", "keep", "info", "session")]
    assert len(refused) == 9
    for what, status, detail, retry in refused:
        assert (status, retry) == (507, "30"), what
        assert "the disk is full; free some space" in detail["detail"], what


def test_a_full_disk_leaves_nothing_behind_and_loses_nothing(seen: dict[str, Any]):
    assert (seen["left"], seen["sessions"]) == ([], [])
    assert seen["revisions"] == 2


def test_reading_goes_on_and_writing_too_once_there_is_room(seen: dict[str, Any]):
    statuses = {what: status for what, status, *_ in seen["answers"]}
    names = ("first save", "read", "save with room", "upload with room", "session with room")
    assert [statuses[name] for name in names] == [200] * 5
