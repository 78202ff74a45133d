"""Scoring and batch inference: recorded, gone on with, not done twice; with a real network, in threads."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rayapp.active_learning.score_files import uncertainty_file
from rayapp.config import Settings
from rayapp.datastore.job_record import Job, State
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import BadRequest, NotFound
from rayapp.imaging.reader import read_segmentation
from rayapp.jobs import scoring_job as scorings
from rayapp.jobs.pool import WorkerLost
from rayapp.jobs.queue import JobQueue
from rayapp.jobs.scoring_job import AutoScore, BatchInference, Scoring
from rayapp.models.store import ModelStore
from rayapp.protocol import JobKind
from rayapp.serving.catalogue import Catalogue
from tests.apps.small.main import publish
from tests.jobs.plain import AFFINE, SHAPE, PlainScoringBackend, write_images, write_label
from tests.jobs.test_training_job import Notes
from tests.waiting import until

APP = Path(__file__).parents[1] / "apps" / "small"
MIB = 1 << 20


@pytest.fixture
def settings(tmp_path):
    write_images(tmp_path / "studies", 4)
    return Settings(studies=tmp_path / "studies", workspace=tmp_path / "workspace", app=str(APP), models=("small",))


@pytest.fixture
def store(settings):
    store = LocalDatastore(settings.studies, watch=False, settle=0.0)
    yield store
    store.close()


@pytest.fixture
def models(settings, store):
    return Catalogue(settings, store)


@pytest.fixture
def backend(settings, store):
    return PlainScoringBackend(settings, store)


@pytest.fixture
def scoring(settings, store, backend, models):
    return Scoring(settings=settings, datastore=store, backend=backend, models=models)


@pytest.fixture
def batch(settings, store, backend, models):
    return BatchInference(settings=settings, datastore=store, backend=backend)


def job(name="tta", kind=JobKind.SCORING, job_id="job-1", **request):
    return Job(id=job_id, kind=kind, name=name, request={"model": name, **request}, user="ann", created=1e9)


def label(store, settings, image, tag="final"):
    from rayapp.datastore.interfaces import Author

    staged = write_label(settings.studies, image, store.stage(".nii.gz"))
    store.save_label(image, tag, staged, ".nii.gz", info={}, author=Author())


@pytest.mark.parametrize("method", ["tta", "epistemic"])
def test_every_unlabelled_image_gets_a_score_an_info_a_row_and_a_map(scoring, store, settings, method):
    label(store, settings, "ct_3")
    context = Notes()
    outcome = scoring.run(job(method, samples=3, workers=2), context)
    scoring.clean(job(method))
    assert (outcome.result["total"], outcome.result["executed"], outcome.result["failed"]) == (3, 3, {})
    assert [told for told in context.told if isinstance(told, int)] == [1, 2, 3]
    table = pd.read_parquet(settings.studies / ".rayapp" / "scores")
    assert sorted(table["image"]) == ["ct_0", "ct_1", "ct_2"]
    assert set(table["samples"]) == {3}
    assert set(table["version"]) == {"v1"}
    for row in table.itertuples():
        info = store.image(row.image).info
        assert info[f"{method}_entropy"] == pytest.approx(row.entropy)
        assert [part["name"] for part in row.structures] == ["liver", "spleen"]
        assert [len(getattr(row, f"slices_{axis}")) for axis in "ijk"] == list(SHAPE)
        levels = read_segmentation(uncertainty_file(settings.studies, method, row.image), max_bytes=MIB)
        assert levels.shape == SHAPE
        np.testing.assert_allclose(levels.affine, AFFINE, atol=1e-4)
        sums = levels.array.sum(axis=(0, 1)) / 255
        np.testing.assert_allclose(row.slices_k, sums, rtol=1e-4)
        assert info[f"{method}_slices"]["k"][0] == int(sums.argmax())
        assert store.features([row.image])[row.image].shape == (128,)
    assert store.ranked(method, limit=9).ids == list(table.sort_values("score", ascending=False)["image"])
    assert {method, "foreground"} <= set(store.score_names())
    assert "tta_entropy" not in store.image("ct_3").info


def test_an_image_is_scored_again_only_with_another_version_method_or_options(
    scoring, store, settings, backend, models
):
    def scored(name="tta", **request):
        backend.asked.clear()
        scoring.run(job(name, **request), Notes())
        return len(backend.asked)

    assert scored(samples=2) == 4
    assert scored(samples=2) == 0
    assert scored(samples=3) == 4
    assert scored(samples=2) == 0
    assert scored("epistemic", samples=2) == 4
    publish(settings, ModelStore.of(settings), 2)
    models.reload()
    assert scored(samples=2) == 4


def test_images_that_fail_are_listed_the_rest_is_done_and_a_new_job_tries_them_again(scoring, store, settings, backend):
    (settings.studies / "ct_1.nii.gz").write_bytes(b"no image")
    backend.faults["ct_2"] = [WorkerLost(), WorkerLost()]
    outcome = scoring.run(job(samples=2), Notes())
    assert set(outcome.result["failed"]) == {"ct_1", "ct_2"}
    assert outcome.result["executed"] == 2
    assert "2 failed" in outcome.text
    assert scoring.due("tta"), "the default options are another run"
    backend.asked.clear()
    outcome = scoring.run(job(samples=2), Notes())
    assert set(outcome.result["failed"]) == {"ct_1"}
    assert sorted(backend.asked) == ["ct_1", "ct_2"]


def test_a_stopped_job_goes_on_where_it_was(scoring, settings, backend):
    context = Notes(stop_after=2)
    assert scoring.run(job(samples=2), context) is None
    again = Notes()
    assert scoring.run(job(samples=2), again).result["executed"] == 2
    assert len(backend.asked) == 4
    scoring.clean(job())
    assert len(pd.read_parquet(settings.studies / ".rayapp" / "scores")) == 4
    scoring.clean(job())  # safe to repeat


def test_what_is_wrong_with_a_request_is_told_before_it_is_a_job(scoring, batch):
    with pytest.raises(NotFound, match="there are: tta, epistemic"):
        scoring.check("guess", {})
    for request in ({"samples": "many"}, {"spatial": "sideways"}, {"images": "some"}, {"workers": -1}):
        with pytest.raises(BadRequest):
            scoring.check("tta", request)
    with pytest.raises(BadRequest):
        batch.check("small", {"label_tag": "../x"})


def test_dice_and_sum_write_what_clients_read(scoring, store, settings):
    label(store, settings, "ct_0")
    label(store, settings, "ct_1")
    label(store, settings, "ct_0", tag="original")
    outcome = scoring.run(job("dice"), Notes())
    assert (outcome.result["executed"], outcome.result["skipped"]) == (1, 3)
    assert store.image("ct_0").info["dice"] == 1.0
    assert "dice" not in store.image("ct_1").info
    scoring.run(job("sum"), Notes())
    truth = read_segmentation(store.label("ct_1", "final").path, max_bytes=MIB).array
    info = store.label("ct_1", "final").info
    assert (info["sum"], info["slices"]) == (int(truth.sum()), int(truth.any(axis=(1, 2)).sum()))
    assert "sum" in store.label("ct_0", "original").info
    assert scoring.run(job("sum", job_id="job-2"), Notes()).result["executed"] == 2  # each job counts anew


@pytest.mark.parametrize(("images", "done"), [("all", 4), ("labeled", 1), ("unlabeled", 3)])
def test_a_batch_labels_the_images_that_are_asked_for(batch, store, settings, images, done):
    label(store, settings, "ct_2")
    outcome = batch.run(job("small", JobKind.BATCH, images=images, label_tag="proposed"), Notes())
    assert outcome.result["executed"] == done == store.status()["label_tags"]["proposed"]
    found = next(image for image in store.image_ids() if "proposed" in store.labels(image))
    record = store.label(found, "proposed")
    assert record.info["model"] == "small"
    assert record.info["job"] == "job-1"
    assert store.revisions(found, "proposed")[0].model_version == "v1"
    assert read_segmentation(record.path, max_bytes=MIB).shape == SHAPE


@pytest.mark.parametrize(
    ("looks", "images"), [("image", "unlabeled"), ("labels", "unlabeled"), ("labels", "all")], ids=str
)
def test_a_batch_replaces_no_label_that_was_saved_meanwhile(batch, store, settings, monkeypatch, looks, images):
    """Somebody saves a final label before it looks at the image's labels, or while its model works."""
    real, saved = getattr(LocalDatastore, looks), []

    def interrupted(self, image_id):
        found = real(self, image_id)
        if image_id == "ct_1" and not saved:
            saved.append(image_id)
            label(store, settings, image_id)
        return found

    monkeypatch.setattr(LocalDatastore, looks, interrupted)
    outcome = batch.run(job("small", JobKind.BATCH, images=images, label_tag="final"), Notes())
    monkeypatch.undo()
    assert [revision.user for revision in store.revisions("ct_1", "final")] == ["admin"]
    assert "job" not in store.label("ct_1", "final").info
    assert (outcome.result["executed"], list(outcome.result["failed"])) == (3, ["ct_1"])
    assert "admin" in outcome.result["failed"]["ct_1"]


def test_a_batch_that_was_cut_short_saves_no_image_twice(batch, store, backend):
    assert batch.run(job("small", JobKind.BATCH), Notes(stop_after=2)) is None
    batch.run(job("small", JobKind.BATCH), Notes())
    assert len(backend.asked) == 4
    assert all(len(store.revisions(image, "original")) == 1 for image in store.image_ids())
    assert batch.run(job("small", JobKind.BATCH, max_batch_size=1, job_id="b"), Notes()).result["total"] == 1


def test_new_images_and_new_versions_are_scored_by_themselves(
    settings, store, backend, models, withdrawals, monkeypatch
):
    settings = settings.model_copy(update={"conf": {"auto_score": "tta"}})
    scoring = Scoring(settings=settings, datastore=store, backend=backend, models=models)
    monkeypatch.setattr(scorings, "FLUSH_S", 0.0)
    jobs = JobQueue(store, {JobKind.SCORING: scoring}, withdrawals)
    looks, automatic = [], scoring.automatic
    monkeypatch.setattr(scoring, "automatic", lambda: looks.append(1) or automatic())
    auto = AutoScore(jobs, scoring, every=0.05)
    try:
        until(lambda: len(backend.asked) == 4 and not scoring.due("tta"))
        write_images(settings.studies, 5)
        store.refresh()
        until(lambda: "tta_entropy" in store.image("ct_4").info)
        publish(settings, ModelStore.of(settings), 2)
        models.reload()
        until(lambda: len(backend.asked) == 10)
        (settings.studies / "bad.nii.gz").write_bytes(b"no image")
        store.refresh()
        until(lambda: "bad" in backend.asked and not scoring.due("tta"))
        looked = len(looks)
        until(lambda: len(looks) >= looked + 3)
        assert backend.asked.count("bad") == 1  # what failed is not tried for ever
    finally:
        auto.close()
        jobs.close()
    assert {done.state for done in jobs.jobs()} == {State.DONE}
    assert json.dumps([done.as_json() for done in jobs.jobs()])


def test_automatic_scoring_goes_on_after_an_unexpected_error_and_logs_it(
    settings, store, backend, models, withdrawals, monkeypatch, caplog
):
    settings = settings.model_copy(update={"conf": {"auto_score": "tta"}})
    scoring = Scoring(settings=settings, datastore=store, backend=backend, models=models)
    due, errors = scoring.due, [sqlite3.OperationalError("disk I/O error"), RuntimeError("a bug")]
    monkeypatch.setattr(scoring, "due", lambda name: _raise(errors.pop()) if errors else due(name))
    jobs = JobQueue(store, {JobKind.SCORING: scoring}, withdrawals)
    auto = AutoScore(jobs, scoring, every=0.01)
    try:
        until(lambda: len(backend.asked) == 4)
    finally:
        auto.close()
        jobs.close()
    assert "disk I/O error" in caplog.text


def _raise(error):
    raise error


def test_nothing_is_scored_by_itself_unless_it_is_wanted(settings, store, backend, models):
    for conf, methods in ({}, []), ({"auto_score": "false"}, []), ({"auto_score": "true"}, ["tta", "epistemic"]):
        wanted = settings.model_copy(update={"conf": conf})
        assert Scoring(settings=wanted, datastore=store, backend=backend, models=models).automatic() == methods
