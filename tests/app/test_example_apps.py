"""The examples are apps that work, each as its docstring says how to start it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.datastore.job_record import Job
from rayapp.datastore.local import LocalDatastore
from rayapp.imaging.reader import read_volume
from rayapp.inference.infer_task import Prompts
from rayapp.jobs.scoring_job import Scoring
from rayapp.protocol import JobKind
from rayapp.serving.catalogue import Catalogue
from tests.jobs.plain import PlainScoringBackend
from tests.jobs.test_training_job import Notes
from tests.model_server import ModelServer, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
AFFINE = np.array([[0.0, -1.6, 1.8, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 1.2, 2.4, 4.0], [0, 0, 0, 1]])
MIB = 1 << 20


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(3):
        voxels = np.random.default_rng(number).uniform(-100 * number, 200, (13, 11, 7)).astype(np.float32)
        nibabel.Nifti1Image(voxels, AFFINE).to_filename(folder / f"ct_{number}.nii.gz")
    return folder


@pytest.fixture
def store(studies):
    store = LocalDatastore(studies, watch=False, settle=0.0)
    yield store
    store.close()


def settings_of(studies, example, **conf):
    return Settings(studies=studies, workspace=studies.parent / "ws", app=str(EXAMPLES / example), conf=conf)


def ask(settings, model, prompts=None):
    """A model's labels for `ct_0`, and the image's voxels."""
    app = app_class(settings).of(settings)
    app.load_all()
    assert app.broken == {}
    volume = read_volume(settings.studies / "ct_0.nii.gz", max_bytes=MIB)
    task = app.task(model)
    return task.predict(task.prepare(volume), prompts or Prompts(), {}).labels, volume.array[0]


def test_the_smallest_app_fits_on_a_page(studies, store):
    settings = settings_of(studies, "minimal", threshold="120")
    labels, voxels = ask(settings, "bright")
    assert np.array_equal(labels, voxels > 120)
    assert Catalogue(settings, store).describe()["labels"] == ["bright"]
    assert len((EXAMPLES / "minimal" / "main.py").read_text().splitlines()) < 60


def test_a_scoring_method_and_a_strategy_of_ones_own_choose_the_next_image(studies, store):
    settings = settings_of(studies, "custom")
    catalogue = Catalogue(settings, store)
    assert {"contrast", "tta", "dice"} <= set(catalogue.describe()["scoring"])
    scoring = Scoring(
        settings=settings, datastore=store, backend=PlainScoringBackend(settings, store), models=catalogue
    )
    job = Job(id="job-1", kind=JobKind.SCORING, name="contrast", request={}, user="ann", created=1e9)
    scoring.check("contrast", {})
    assert scoring.run(job, Notes()).result["executed"] == 3
    spread = [store.image(f"ct_{number}").info["contrast"] for number in range(3)]
    assert spread == sorted(spread)
    assert catalogue.next_image("contrast", {})["id"] == "ct_2"


def test_a_ported_app_serves_trains_nothing_and_puts_masks_on_the_images_grid(studies, store):
    settings = settings_of(studies, "ported")
    labels, voxels = ask(settings, "spleen")
    assert (labels.shape, labels.dtype) == (voxels.shape, np.uint8)
    assert 0 < labels.mean() < 1
    catalogue = Catalogue(settings, store)
    described = catalogue.describe()
    assert (described["models"]["spleen"]["labels"], described["broken_models"]) == ({"spleen": 1}, {})
    assert list(described["strategies"]) == ["random", "first"]
    assert catalogue.label_saved("ct_0", "final") == {"saved": "final"}


def test_an_app_asks_a_model_of_another_server(studies):
    with serving(ModelServer()) as url:
        settings = settings_of(studies, "remote", server=url)
        labels, voxels = ask(settings, "promptable", Prompts(clicks={"structure": [(6, 5, 3)]}))
    wanted = voxels > 50
    wanted[5:8, 4:7, 2:5] = True
    assert np.array_equal(labels, wanted)
