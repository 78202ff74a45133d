"""The app's code is edited while two replicas serve it."""

from __future__ import annotations

import textwrap

import nibabel
import numpy as np
import pytest

from deployments.clients import DatastoreClient
from rayapp.app.app_loader import app_class
from rayapp.app.label_app import _versions
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import AppBroken
from rayapp.protocol import Output
from rayapp.serving.catalogue import Catalogue
from rayapp.serving.messages import InferCall
from rayapp.serving.service import InferenceService

MAIN = """
import numpy as np
from rayapp.app import LabelApp
from rayapp.inference.infer_task import Prediction, TaskInfo

class Told:
    version = "1"
    info = TaskInfo(type="segmentation", labels={"all": 1}, dimension=3, description="")

    def load(self):
        pass

    def prepare(self, volume):
        return np.full(1, VALUE)

    def predict(self, prepared, prompts, config):
        labels = np.zeros((4, 5, 6), np.uint8)
        return Prediction(labels=labels, params={"prepared": int(prepared[0]), "code": VALUE})

class App(LabelApp):
    def init_infers(self):
        return {"told": Told()}
"""


@pytest.fixture
def write(tmp_path):
    """Write the app's code."""
    (tmp_path / "app").mkdir()

    def write(code):
        (tmp_path / "app" / "main.py").write_text(textwrap.dedent(code))

    return write


@pytest.fixture
def house(tmp_path, write):
    """A catalogue and two replicas."""
    write(MAIN.replace("VALUE", "1"))
    studies = tmp_path / "studies"
    studies.mkdir()
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)).to_filename(studies / "ct.nii.gz")
    settings = Settings(studies=studies, workspace=tmp_path / "ws", app=str(tmp_path / "app"))
    store = LocalDatastore(studies, watch=False, settle=0.0)
    catalogue = Catalogue(settings, store)
    replicas = []
    for _ in range(2):
        app = app_class(settings).of(settings)
        app.load_all()
        replicas.append(InferenceService(settings=settings, app=app, images=DatastoreClient(store)))
    yield catalogue, replicas
    for replica in replicas:
        replica.close()
    store.close()


async def answers(replicas):
    call = InferCall(model="told", key="ct", output=Output.JSON)
    replies = [(await replica.infer(call)).params for replica in replicas]
    return [(params["code"], params["prepared"]) for params in replies]


async def test_both_replicas_take_the_new_code_with_their_next_answer(house, write):
    catalogue, replicas = house
    assert await answers(replicas) == [(1, 1), (1, 1)]
    write(MAIN.replace("VALUE", "22"))
    catalogue.reload()
    assert await answers(replicas) == [(22, 22), (22, 22)]


async def test_code_that_fails_is_refused_and_the_old_one_serves_on(house, write):
    catalogue, replicas = house
    write("1 / 0")
    with pytest.raises(AppBroken, match=r"main.py, line 1: ZeroDivisionError"):
        catalogue.reload()
    assert await answers(replicas) == [(1, 1), (1, 1)]
    write(MAIN.replace("VALUE", "333"))
    catalogue.reload()
    assert await answers(replicas) == [(333, 333), (333, 333)]


def test_an_ensemble_with_a_constant_version_is_new_when_a_part_is():
    class Part:
        def __init__(self, version):
            self.version = version

        def predict(self):
            """As a task has it."""

    class Ensemble(Part):
        def __init__(self, *parts):
            super().__init__("1")
            self.parts = {part.version: part for part in parts}

    assert _versions(Ensemble(Part("v1"), Part("v2"))) != _versions(Ensemble(Part("v1"), Part("v3")))
