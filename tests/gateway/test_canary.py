"""Names and UIDs of a patient who is in every image, through every route: no log, metric, audit or temporary file has
them, and no error has what its caller did not send.
"""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayapp.protocol import Role
from rayapp.runtime import logs
from tests.gateway.conftest import AFFINE, Serve, Served, voxels, write_image, write_label
from tests.gateway.test_access import TABLE
from tests.imaging.series import edit, write_series

SERIES, STUDY = "1.2.826.0.1.3680043.8.498.777000111", "1.2.826.0.1.3680043.8.498.777000222"
FILE = "Kanarienvogel_Erna_1931"
HEADERS = {
    "PatientName": "Zeisig^Amalie",
    "PatientID": "Z-4711-Q",
    "AccessionNumber": "ACC-31337",
    "StudyID": "STUD-99",
}
SECRETS = (
    SERIES,
    STUDY,
    "777000111",
    "777000222",
    "Kanarienvogel",
    "Zeisig",
    "Amalie",
    "Z-4711-Q",
    "ACC-31337",
    "STUD-99",
)
OPEN_ROUTES = [("GET", path) for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/auth/")]


@pytest.fixture(scope="module")
def visited(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A gateway with the patient's images, all of whose routes were asked, and the folder of temporary files."""
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        served = serve(auth="token")
        handlers = logging.getLogger("rayapp").handlers[:]
        logs.configure(served.settings)
        logging.getLogger("rayapp").setLevel(logging.DEBUG)
        write_image(served.settings.studies / f"{FILE}.nii.gz")
        files = write_series(served.settings.studies / "deep" / "er", voxels(), AFFINE, series=SERIES, study=STUDY)
        for file in files:
            edit(file, **HEADERS)
        broken = write_series(
            served.settings.studies / "deep" / "broken", voxels(), AFFINE, series=SERIES + "9", study=STUDY
        )
        for file in broken:
            edit(file, **HEADERS)
        broken[3].unlink()
        (served.settings.studies / f"{FILE}_broken.nii.gz").write_bytes(b"no image")
        served.store.refresh()
        served.token = served.users.add("reader", Role.ADMIN)
        yield served, temporary
        logging.getLogger("rayapp").handlers[:] = handlers


def ask_everything(served: Served, folder: Path) -> list[tuple[str, int, str]]:
    """(request, status, body) of every route with every image and of the usual work on each."""
    seen = []
    images = (SERIES, FILE, f"{FILE}_broken", SERIES + "9", "nothing")
    label = write_label(folder / "label.nii.gz")
    wrong = write_image(folder / "wrong.nii.gz", np.zeros((3, 4, 5), np.uint8))
    for image, (method, path) in itertools.product(images, [*TABLE, *OPEN_ROUTES]):
        if method == "DELETE" and path in ("/datastore/image", "/datastore/", "/model/{model}"):
            continue
        filled = path.replace("{path:path}", "x").replace("{study}", STUDY).replace("{series}", SERIES)
        filled = filled.replace("{model}", "bright").replace("{strategy}", "random").replace("{method}", "entropy")
        filled = filled.replace("{", "").replace("}", "")
        query = {
            "image": image,
            "label": image,
            "id": image,
            "tag": "final",
            "output": "json",
            "PatientName": "Zeisig*",
        }
        answer = served.send(method, filled, params=query, stream=True)
        body = "" if path.endswith("/events") else answer.raw.read(200_000, decode_content=True).decode("latin-1")
        answer.close()
        seen.append((f"{method} {filled}?image={image}", answer.status_code, body))
    for image in images:
        for file in (label, wrong):
            answer = served.save(image, file)
            seen.append((f"save of {image}", answer.status_code, answer.text))
        for params in ({}, {"bright": [[1, 1, 1]]}, {"test": "break"}, {"label_tag": "final", "save_label": True}):
            for output in ("json", "all", "dicom_seg", "nonsense"):
                answer = served.infer(f"image={image}&output={output}", params)
                seen.append((f"infer {image} {output}", answer.status_code, answer.text))
        opened = served.post("/interactions", json={"image": image, "model": "bright"})
        seen.append((f"open {image}", opened.status_code, opened.text))
        if opened.ok:
            at = f"/interactions/{opened.json()['id']}"
            for path, body in (
                ("prompts", {"clicks": {"bright": [[1, 2, 3]]}}),
                ("prompts", {"roi": [9]}),
                ("undo", {}),
            ):
                answer = served.post(f"{at}/{path}", json=body)
                seen.append((f"{path} {image}", answer.status_code, answer.text))
    with (served.settings.studies / f"{FILE}.nii.gz").open("rb") as body:
        for path in ("/session/", "/datastore/?image=sent"):
            answer = served.put(path, files={"files": (f"{FILE}.nii.gz", body), "file": (f"{FILE}.nii.gz", body)})
            seen.append((f"put {path}", answer.status_code, answer.text))
    for kind in ("scoring/entropy", "batch/infer/bright", "train/bright"):
        answer = served.post(f"/{kind}", json={})
        seen.append((f"post {kind}", answer.status_code, answer.text))
    for image in images:
        answer = served.send("DELETE", f"/datastore/image?id={image}")
        seen.append((f"remove {image}", answer.status_code, answer.text))
    return seen


@pytest.fixture(scope="module")
def answers(visited: tuple[Served, Path], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str]]:
    return ask_everything(visited[0], tmp_path_factory.mktemp("sent"))


def test_the_work_was_done(answers: list[tuple[str, int, str]]):
    statuses = {what: status for what, status, _ in answers}
    assert statuses[f"save of {SERIES}"] == 422, "the second of two: the wrong grid"
    assert {statuses[f"infer {image} all"] for image in (SERIES, FILE)} <= {200}
    assert {statuses[f"open {image}"] for image in (SERIES, FILE)} == {200}
    assert any("Zeisig" in body for _, status, body in answers if status == 200), "the viewer is shown the name"


@pytest.mark.parametrize("secret", SECRETS)
def test_no_log_metric_audit_or_temporary_file_has_it(
    visited: tuple[Served, Path], answers: list[tuple[str, int, str]], secret: str
):
    served, temporary = visited
    workspace = served.settings.workspace
    for path in itertools.chain(
        (workspace / "logs").rglob("*"), (workspace / "audit").rglob("*"), temporary.rglob("*")
    ):
        assert secret not in path.name
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path.name
    assert (workspace / "logs" / "app.log").stat().st_size > 0
    assert any((workspace / "audit").glob("*.jsonl"))
    assert secret not in served.get("/metrics").text
    assert secret not in json.dumps([name for name, _ in served.get("/metrics").headers.items()])


def test_no_error_has_what_its_caller_did_not_send(answers: list[tuple[str, int, str]]):
    sent = {SERIES, STUDY, SERIES + "9", FILE, "Zeisig*"}
    for what, status, body in answers:
        if status >= 400:
            for echoed in sent:
                body = body.replace(echoed, "")
            assert [secret for secret in SECRETS if secret in body] == [], f"{what}: {body[:300]}"
