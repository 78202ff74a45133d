"""Answers of an app's own models are checked before they are sent, and a missing answer is an error too."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading

import pytest

from deployments.inference import InferenceReplica
from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.errors import AppBroken, ModelBroken
from rayapp.jobs.image_work import ImageWork, ImageWorker
from rayapp.protocol import JobKind
from rayapp.serving.executors import STROKE_THREADS
from rayapp.serving.service import InferenceService
from tests.app.test_own_app import LIB
from tests.serving.test_service import Store, click, write

APP = """
    from lib.bright import Bright
    from rayapp.app.label_app import LabelApp

    class MyApp(LabelApp):
        def init_infers(self):
            return {"threshold": Bright(10)}
"""
NETWORK = """
    import torch
    from rayapp.app.label_app import LabelApp
    from rayapp.inference.methods.basic_infer import BasicInferTask

    class Lost(torch.nn.Conv3d):
        def forward(self, x):
            return super().forward(x) * float("nan")

    class Plain(BasicInferTask):
        def pre_transforms(self, data=None):
            return []
        def post_transforms(self, data=None):
            return []

    class MyApp(LabelApp):
        def init_infers(self):
            network = Lost(1, 2, 1)
            return {"threshold": Plain(network=network, weights=None, labels={"bright": 1}, description="")}
"""
ANSWER = "return Prediction(labels=(prepared.array[0] > self.at).astype(np.uint8))"


@pytest.fixture
def serve(tmp_path):
    """A service over an app with these sources."""
    services = []

    def make(main, lib=LIB, **settings):
        app = tmp_path / "mine"
        (app / "lib").mkdir(parents=True)
        (app / "main.py").write_text(textwrap.dedent(main))
        (app / "lib" / "bright.py").write_text(lib)
        (tmp_path / "studies").mkdir()
        write(tmp_path / "studies", 200)
        given = Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", app=str(app), **settings)
        made = app_class(given).of(given)
        assert made.broken == {}
        service = InferenceService(settings=given, app=made, images=Store(given.studies))
        services.append(service)
        return service

    yield make
    for service in services:
        service.close()


WRONG = {
    "another shape": (
        "return Prediction(labels=np.zeros((6, 7, 5), np.uint8))",
        r"labels that are uint8 of \(7, 6, 5\), not labels that are uint8 of \(6, 7, 5\)",
    ),
    "with its channel": ("return Prediction(labels=(prepared.array > 1).astype(np.uint8))", r"of \(1, 7, 6, 5\)"),
    "probabilities": ("return Prediction(labels=prepared.array[0] / 0.7)", "not labels that are float"),
    "a mask of booleans": ("return Prediction(labels=prepared.array[0] > 1)", "not labels that are bool"),
    "a list": ("return Prediction(labels=[1])", "not labels that are a list"),
    "an array": ("return prepared.array[0]", "not a ndarray"),
    "nothing": ("return", "not None"),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_an_answer_that_is_no_mask_of_the_image_names_the_class_and_what_was_expected(serve, kind):
    answer, said = WRONG[kind]
    assert LIB.count(ANSWER) == 1
    service = serve(APP, LIB.replace(ANSWER, answer))
    with pytest.raises(AppBroken, match=said) as error:
        await service.infer(click())
    assert "Bright (lib/bright.py, line 5): predict must return a Prediction" in error.value.detail


async def test_a_network_that_answers_with_nan_is_told(serve):
    with pytest.raises(ModelBroken, match="its network answers with NaN"):
        await serve(NETWORK).infer(click())


def test_what_a_batch_would_save_is_looked_at_too(serve, tmp_path):
    from rayapp.datastore.local import LocalDatastore

    serve(APP, LIB.replace(ANSWER, WRONG["another shape"][0]))
    settings = Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", app=str(tmp_path / "mine"))
    store = LocalDatastore(settings.studies, watch=False, settle=0.0)
    work = ImageWork(
        job_id="job-1",
        kind=JobKind.BATCH,
        name="threshold",
        model="threshold",
        version=None,
        request={"label_tag": "original"},
        user="ann",
    )
    try:
        with pytest.raises(AppBroken, match=r"uint8 of \(6, 7, 5\)"):
            ImageWorker(settings, store)(work, "ct")
        assert store.labels("ct") == {}
    finally:
        store.close()


ENDLESS = """
import threading
GO = threading.Event()
"""


async def test_a_model_that_never_ends_is_told_and_its_replica_says_that_it_is_to_be_replaced(serve):
    lib = ENDLESS.strip() + LIB.replace(ANSWER, f"GO.wait()\n        {ANSWER}")
    service = serve(APP, lib, max_answer=0.3)
    replica = object.__new__(InferenceReplica)
    replica._service = service
    replica.check_health()
    told = r"'threshold', Bright \(lib/bright\.py, line \d+\), did not answer within 0"
    try:
        with pytest.raises(AppBroken, match=told):
            await asyncio.wait_for(service.infer(click()), 60)
        with pytest.raises(RuntimeError, match="did not return in time"):
            replica.check_health()
    finally:
        sys.modules["lib.bright"].GO.set()


async def test_waiting_for_other_work_does_not_count_as_hanging(serve):
    service = serve(APP, LIB, max_answer=2.0)
    done = threading.Event()
    lanes = [service._executors.model(done.wait, network=network) for network in (True, *[False] * STROKE_THREADS)]
    waiting = [asyncio.ensure_future(lane) for lane in lanes]
    answer = asyncio.ensure_future(service.infer(click()))
    await asyncio.sleep(2.5)
    assert not answer.done()
    done.set()
    await asyncio.gather(answer, *waiting)
    assert not service.hung


async def test_a_time_out_of_the_models_own_is_no_hang(serve):
    service = serve(APP, LIB.replace(ANSWER, "raise TimeoutError('the server of the model')"))
    with pytest.raises(TimeoutError, match="the server of the model"):
        await service.infer(click())
    assert not service.hung
