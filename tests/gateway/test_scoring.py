"""Scoring, batch inference and the maps of uncertainty over HTTP, as MONAI Label's clients and ours ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.active_learning.score_files import save_uncertainty
from rayapp.client import Client, JobKind
from rayapp.errors import AlreadyRunning, BadRequest, NotFound
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Segmentation
from tests.gateway.conftest import AFFINE, MAX_BODY, SHAPE, Serve, Served, write_label
from tests.waiting import until


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve()


def ended(gateway: Served, task: dict[str, Any]) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = gateway.get(f"/jobs/{task['id']}").json()
        return found if "end_ts" in found else None

    return until(over)


def test_a_scoring_runs_as_the_clients_know_tasks(served: Served, tmp_path: Path):
    assert served.get("/scoring/?check_if_running=true").status_code == 404
    served.save("ct_a", write_label(tmp_path / "a.nii.gz"))
    task = served.post("/scoring/sum").json()
    assert task["status"] in ("SUBMITTED", "RUNNING")
    assert task["request"]["model"] == "sum"
    done = ended(served, task)
    assert (done["status"], done["result"]["executed"], done["result"]["skipped"]) == ("DONE", 1, 2)
    assert done["progress"]["iteration"] == 3
    assert served.get("/datastore/label/info?label=ct_a&tag=final").json()["sum"] == 2
    assert served.get("/scoring/").json()["id"] == task["id"]
    assert served.post("/scoring/dice?run_sync=true").json()["total"] == 3
    assert served.send("DELETE", "/scoring/").json() is None


def test_all_methods_are_queued_and_those_that_cannot_run_say_why(served: Served):
    answers = served.post("/scoring/", json={"sum": {"workers": 1}}).json()
    assert set(answers) == {"tta", "epistemic", "dice", "sum"}
    assert "no model that can score images is in production" in answers["tta"]["detail"]
    assert answers["sum"]["result"]["request"]["workers"] == 1
    for name in ("dice", "sum"):
        assert ended(served, answers[name]["result"])["status"] == "DONE"


def test_what_is_wrong_with_a_scoring_is_said(served: Served):
    assert served.post("/scoring/guess").status_code == 404
    assert served.post("/scoring/sum", json={"images": "some"}).status_code == 400
    assert served.post("/scoring/tta", json={"samples": "x"}).status_code == 400


def test_a_batch_labels_all_lists_what_failed_and_answers_at_once_if_asked(served: Served):
    (served.settings.studies / "broken.nii.gz").write_bytes(b"no image")
    served.store.refresh()
    answer = served.post("/batch/infer/bright?run_sync=true", json={"label_tag": "proposed"}).json()
    assert answer["broken"] == {}
    assert {image for image, found in answer.items() if found} == {"ct_a", "ct_b", "ct_ü"}
    assert answer["ct_a"]["params"]["label_names"] == {"background": 0, "bright": 1}
    assert (answer["ct_a"]["label"], answer["ct_a"]["tag"]) == ("ct_a", "proposed")
    last = served.get("/batch/infer").json()
    assert list(last["result"]["failed"]) == ["broken"]
    assert served.store.status()["label_tags"]["proposed"] == 3


def test_a_client_starts_batches_and_scorings_and_waits_for_them(served: Served):
    with Client(served.url) as client:
        job = client.start_job(JobKind.BATCH, "bright", {"label_tag": "mine"}, images="unlabeled")
        assert job["request"]["images"] == "unlabeled"
        *_, last = client.follow(job["id"])
        assert last["result"]["executed"] == 2
        assert not client.has_label("ct_a", "mine")
        with pytest.raises(BadRequest):
            client.start_job(JobKind.BATCH, "bright", images="some")
        job = client.start_job(JobKind.SCORING, "sum", images="labeled")
        *_, last = client.follow(job["id"])
        assert last["result"]["total"] == 1


def test_one_job_of_a_kind_at_a_time_unless_it_may_wait(served: Served):
    with Client(served.url) as client:
        first = client.start_job(JobKind.BATCH, "bright", {"label_tag": "x"})
        try:
            second = client.start_job(JobKind.BATCH, "bright", {"label_tag": "x"})
        except AlreadyRunning:
            second = client.start_job(JobKind.BATCH, "bright", {"label_tag": "x"}, enqueue=True)
        for job in (first, second):
            *_, last = client.follow(job["id"])
            assert last["status"] == "DONE"


def test_where_a_model_is_unsure_is_fetched_on_the_images_grid(served: Served, tmp_path: Path):
    levels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    save_uncertainty(served.settings.studies, "tta", "ct_b", Segmentation(array=levels, affine=AFFINE))
    served.store.update_image_info("ct_b", {"tta_slices": {"i": [3, 1], "j": [2], "k": []}})
    with Client(served.url) as client:
        for ext in (".nii.gz", ".nrrd"):
            path = client.uncertainty("tta", "ct_b", tmp_path, ext=ext)
            assert path.name == f"ct_b.tta{ext}"
            found = read_segmentation(path, max_bytes=MAX_BODY)
            np.testing.assert_array_equal(found.array, levels)
            np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)
        assert client.uncertain_slices("tta", "ct_b") == {"i": [3, 1], "j": [2], "k": []}
        for ask in (client.uncertain_slices, lambda method, image: client.uncertainty(method, image, tmp_path)):
            for method, image in (("epistemic", "ct_b"), ("tta", "ct_a"), ("tta", "nobody"), ("guess", "ct_b")):
                with pytest.raises(NotFound):
                    ask(method, image)
    assert served.get("/scoring/tta/uncertainty?image=../x").status_code == 400
    assert served.get("/scoring/tta/uncertainty?image=ct_b&ext=.exe").status_code == 422
