"""Training jobs: what they train on, how they go on, what becomes of the result, and what they leave behind."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from rayapp.datastore.job_record import Job, State
from rayapp.errors import BadRequest, Busy
from rayapp.jobs.queue import JobContext, JobQueue
from rayapp.jobs.training_job import REQUEST, Training, run_folder
from rayapp.protocol import JobKind
from tests.jobs.plain import PlainTrainingBackend
from tests.waiting import until


class Notes(JobContext):
    """A context without a queue, which may say stop after so many iterations."""

    def __init__(self, stop_after=None):
        super().__init__(None, "")
        self.told, self.stop_after = [], stop_after

    def note(self, text):
        self.told.append(text)

    def progress(self, progress, *, durable=False):
        self.told.append(progress.iteration)
        if progress.iteration == self.stop_after:
            self.stop.set()


@pytest.fixture
def training(settings, datastore, catalogue):
    return Training(settings=settings, datastore=datastore, models=catalogue, backend=PlainTrainingBackend(settings))


def job(name="bright", job_id="job-1", **request):
    return Job(id=job_id, kind=JobKind.TRAIN, name=name, request={"model": name, **request}, user="ann", created=1e9)


def at(catalogue, name="bright"):
    return float(load_file(catalogue.production(name).weights)["at"])


def test_a_better_version_serves_and_its_card_says_where_it_comes_from(training, catalogue, settings):
    outcome = training.run(job(max_epochs=2), Notes())
    version = catalogue.production("bright")
    assert outcome.result["version"] == version.version == "v2"
    assert outcome.result["metric"] > outcome.result["baseline"]
    card = version.card
    assert (card["parent"], card["job"], card["labels"]) == ("v1", "job-1", {"bright": 1})
    assert card["params"] == {"max_epochs": 2}
    assert card["data"]["pairs"] == 3
    assert card["code"].startswith("rayapp ")
    assert card["metrics"] == {"dice": outcome.result["metric"]}


def test_the_data_hash_changes_with_a_label_only(training, datastore, settings):
    def digest(job_id):
        training.run(job(job_id=job_id), Notes())
        return json.loads((run_folder(settings, job_id) / REQUEST).read_text())["data"]["sha256"]

    first = digest("a")
    assert digest("b") == first
    staged = datastore.stage(".nii.gz")
    staged.write_bytes(datastore.label("ct_0", "final").path.read_bytes() + b"")
    import nibabel
    import numpy as np

    from rayapp.datastore.interfaces import Author
    from tests.jobs.plain import AFFINE, SHAPE

    nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_filename(staged)
    datastore.save_label("ct_0", "final", staged, ".nii.gz", info={}, author=Author())
    assert digest("c") != first


def test_a_worse_candidate_is_kept_but_does_not_serve_unless_the_guard_is_off(training, catalogue):
    training.run(job(max_epochs=6, job_id="good"), Notes())
    good = catalogue.production("bright").version
    outcome = training.run(job(learning_rate=-4000.0, job_id="bad"), Notes())
    assert outcome.result["promoted"] is False
    assert "scores worse" in outcome.text
    assert catalogue.production("bright").version == good
    assert catalogue.models()["bright"]["versions"][-1]["job"] == "bad"
    outcome = training.run(job(learning_rate=-4000.0, guard="false", job_id="worse"), Notes())
    assert outcome.result["promoted"] is True
    assert catalogue.production("bright").version == outcome.result["version"]


@pytest.mark.parametrize(("better", "promoted"), [(0.79, False), (0.8, True), (None, True)])
def test_a_version_that_may_be_better_by_chance_alone_is_not_promoted(settings, datastore, catalogue, better, promoted):
    class Compared(PlainTrainingBackend):
        def __call__(self, *given):
            result = super().__call__(*given)
            return replace(result, card={**result.card, "compared": {"better": better}} if better else result.card)

    training = Training(settings=settings, datastore=datastore, models=catalogue, backend=Compared(settings))
    outcome = training.run(job(max_epochs=6), Notes())
    assert outcome.result["metric"] > outcome.result["baseline"]
    assert outcome.result["promoted"] is promoted
    assert ("79% of bootstrap samples" in outcome.text) is (not promoted)


def test_a_training_knows_for_how_many_images_versions_were_designed_promoted_or_not(
    settings, datastore, catalogue, tmp_path
):
    weights, asked = catalogue.production("bright").weights, []

    class Noting(PlainTrainingBackend):
        def __call__(self, job, request, *given):
            asked.append(request)
            return super().__call__(job, request, *given)

    catalogue.publish("bright", weights, {"plan": {"images": 7}}, request="early", promote=False)
    training = Training(settings=settings, datastore=datastore, models=catalogue, backend=Noting(settings))
    training.run(job(), Notes())
    assert asked[0].tried == 7


def test_a_version_uploaded_meanwhile_is_not_replaced_by_one_that_was_never_compared_with_it(
    settings, datastore, catalogue, tmp_path
):
    weights = catalogue.production("bright").weights

    class Slow(PlainTrainingBackend):
        def __call__(self, *given):
            catalogue.upload("bright", weights, {}, request="meanwhile")
            return super().__call__(*given)

    training = Training(settings=settings, datastore=datastore, models=catalogue, backend=Slow(settings))
    outcome = training.run(job(), Notes())
    assert outcome.result["promoted"] is False
    assert "v2 was promoted during" in outcome.text
    assert catalogue.production("bright").version == "v2"


def test_a_version_promoted_while_the_result_is_published_is_not_replaced(settings, datastore, catalogue, monkeypatch):
    """The verdict is made before the new version is tried, which may take minutes."""
    weights = catalogue.production("bright").weights
    publish = catalogue.publish

    def late(*args, **given):
        monkeypatch.undo()
        catalogue.upload("bright", weights, {}, request="meanwhile")
        return publish(*args, **given)

    monkeypatch.setattr(catalogue, "publish", late)
    training = Training(
        settings=settings, datastore=datastore, models=catalogue, backend=PlainTrainingBackend(settings)
    )
    outcome = training.run(job(max_epochs=6), Notes())
    assert outcome.result["promoted"] is False
    assert "v2 was put into production meanwhile" in outcome.text
    assert catalogue.production("bright").version == "v2"
    assert catalogue.models()["bright"]["versions"][-1]["verdict"]["promoted"] is False


def test_a_model_that_never_served_joins_with_its_first_version(training, catalogue):
    assert "shiny" not in catalogue.describe()["models"]
    training.run(job("shiny", learning_rate=-4000.0), Notes())
    assert catalogue.describe()["models"]["shiny"]["version"] == "v1"
    assert catalogue.production("shiny").card["parent"] is None


def test_pretrained_says_whether_it_starts_from_the_version_that_serves(training, catalogue, settings):
    training.run(job(max_epochs=6, job_id="a"), Notes())
    served = at(catalogue)
    training.run(job(max_epochs=1, learning_rate=0.0, guard=False, job_id="b"), Notes())
    assert at(catalogue) == served
    training.run(job(max_epochs=1, learning_rate=0.0, guard=False, pretrained=False, job_id="c"), Notes())
    assert at(catalogue) == 60.0


def test_a_run_cut_short_goes_on_from_its_checkpoint_to_the_very_same_result(training, catalogue, settings):
    context = Notes(stop_after=6)
    assert training.run(job(), context) is None
    assert context.told[-1] == 6
    again = Notes()
    assert training.run(job(), again).result["version"] == "v2"
    assert again.told[0] == 5
    cut = at(catalogue)
    training.run(job(job_id="whole", guard=False, pretrained=False), Notes())
    assert at(catalogue) == cut


def test_a_run_that_goes_on_keeps_its_data_and_its_parent(training, datastore, catalogue, settings):
    training.run(job(), Notes(stop_after=5))
    catalogue.upload("bright", catalogue.production("bright").weights, {}, request="x")
    datastore.remove_label("ct_2", "final")
    training.run(job(), Notes())
    card = catalogue.models()["bright"]["versions"][-1]
    assert (card["parent"], card["data"]["pairs"]) == ("v1", 3)


def test_a_result_published_before_a_crash_is_published_once(training, catalogue, settings, monkeypatch):
    publish = catalogue.publish

    def lost(*given, **named):
        publish(*given, **named)
        raise Busy("killed before it could answer")

    monkeypatch.setattr(catalogue, "publish", lost)
    with pytest.raises(Busy):
        training.run(job(), Notes())
    monkeypatch.undo()
    context = Notes()
    outcome = training.run(job(), context)
    assert outcome.result["promoted"] is True
    assert "promoted to production" in outcome.text
    assert context.told == []
    assert [found["version"] for found in catalogue.models()["bright"]["versions"]] == ["v1", "v2"]
    assert catalogue.production("bright").version == "v2"


def test_a_finished_run_keeps_its_curves_and_a_stopped_one_nothing(training, settings):
    training.run(job(), Notes())
    training.clean(replace(job(), state=State.DONE))
    assert sorted(path.name for path in run_folder(settings, "job-1").iterdir()) == [
        "curves.png",
        REQUEST,
        "trace.txt",
    ]
    assert not list((settings.workspace / "checkpoints").glob("job-1*"))
    training.run(job(job_id="job-2"), Notes(stop_after=5))
    training.clean(replace(job(job_id="job-2"), state=State.STOPPED))
    assert not [path for path in settings.workspace.rglob("*") if "job-2" in path.name]


def test_nothing_to_train_on_is_said_at_once(training, datastore):
    for image in ("ct_0", "ct_1", "ct_2"):
        datastore.remove_label(image, "final")
    with pytest.raises(BadRequest, match="final label"):
        training.check("bright", {})
    with pytest.raises(BadRequest, match="final label"):
        training.run(job(), Notes())


@pytest.mark.parametrize("workers", ["many", -1, [2]])
def test_a_number_of_workers_that_is_none_is_refused(training, workers):
    with pytest.raises(BadRequest, match="workers"):
        training.check("bright", {"workers": workers})


def test_the_whole_way_through_a_queue(training, datastore, catalogue, settings, withdrawals):
    jobs = JobQueue(datastore, {JobKind.TRAIN: training}, withdrawals)
    jobs.submit(JobKind.TRAIN, "bright", {"model": "bright"}, job_id="a", user="ann")
    jobs.submit(JobKind.TRAIN, "bright", {"model": "bright"}, job_id="b", user="ann")
    until(lambda: jobs.job("b").over)
    jobs.close()
    assert [job.state for job in jobs.jobs()] == [State.DONE, State.DONE]
    assert jobs.job("b").result["version"] == "v3"
