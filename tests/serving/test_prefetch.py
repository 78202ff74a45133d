"""An image that was handed out is ready before its first click, and no click waits for that."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from rayapp.config import Settings
from rayapp.errors import BadRequest, Superseded, Unreadable
from rayapp.imaging.mask_codec import decode
from rayapp.inference.infer_task import Prediction, TaskInfo
from rayapp.inference.network import cancellation
from rayapp.models.store import ModelStore
from rayapp.protocol import Output
from rayapp.serving.messages import HandedOut, InferCall
from rayapp.serving.prefetch import QUEUE
from rayapp.serving.service import InferenceService
from tests.serving.places import record_places
from tests.serving.test_service import App, Store
from tests.waiting import until_async

SHAPE = (7, 6, 5)


class Slow:
    """A task that notes what it was asked. It has windows, as networks have, and can be held up in the first."""

    version = "v1"

    def __init__(self, labels):
        self.info = TaskInfo(type="deepedit", labels=labels, dimension=3, description="", config={"largest_cc": False})
        self.prepared, self.asked, self.finished = [], [], 0
        self.held, self.inside = threading.Event(), threading.Event()
        self.held.set()

    def load(self):
        pass

    def prepare(self, volume):
        self.prepared.append(int(volume.array.max()))
        return volume

    def predict(self, prepared, prompts, config):
        self.asked.append(prompts)
        for _ in range(3):
            self.inside.set()
            assert self.held.wait(60)
            cancellation.checkpoint()
        if not self.info.labels and not prompts.clicks:
            raise BadRequest("click on something")
        self.finished += 1
        return Prediction(labels=(prepared.array[0] > 100).astype(np.uint8))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def house(tmp_path, store):
    for number in range(QUEUE + 4):
        array = np.zeros(SHAPE, np.int16)
        array[1, 2, 3] = 200 + number
        nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(tmp_path / f"ct_{number}.nii.gz")
    settings = Settings(studies=tmp_path, workspace=tmp_path / "ws")
    app = App(settings=settings, models=ModelStore.of(settings))
    app.infers = {"organs": Slow({"liver": 1}), "anything": Slow({})}
    service = InferenceService(settings=settings, app=app, images=store)
    yield service, app.infers["organs"], app.infers["anything"]
    for task in app.infers.values():
        task.held.set()
    service.close()


def click(number=0, model="organs", **params):
    return InferCall(model=model, key=f"ct_{number}", params=params, output=Output.BOX)


async def test_an_image_handed_out_is_prepared_and_segmented_for_the_models_there_are(house):
    service, organs, anything = house
    service.prefetch(HandedOut(key="ct_0"))
    await until_async(lambda: anything.finished)
    assert (organs.prepared, anything.prepared) == ([200], [200])
    reply = await service.infer(click())
    assert np.argwhere(decode(reply.body)).tolist() == [[1, 2, 3]]
    assert organs.finished == 1, "the first mask was there"
    await service.infer(click(liver=[[1, 1, 1]]))
    assert organs.finished == 2, "a click is asked about"
    assert organs.prepared == [200]


async def test_an_image_that_cannot_be_opened_is_set_aside_and_the_next_one_prepared(house, store, tmp_path):
    service, organs, _ = house
    whole = (tmp_path / "ct_0.nii.gz").read_bytes()
    (tmp_path / "ct_0.nii.gz").write_bytes(whole[: len(whole) // 2])
    service.prefetch(HandedOut(key="ct_0", user="ann"))
    service.prefetch(HandedOut(key="ct_1", user="bob"))
    await until_async(lambda: organs.finished)
    assert organs.prepared == [201]
    assert list(store.aside) == ["ct_0"]
    with pytest.raises(Unreadable) as refused:
        await service.infer(click())
    assert store.aside == {"ct_0": refused.value.detail}


async def test_a_session_that_cannot_be_opened_is_no_business_of_the_datastore(house, store, tmp_path):
    service, _, _ = house
    (tmp_path / "sent.nii.gz").write_bytes(b"no image")
    with pytest.raises(Unreadable):
        await service.infer(replace(click(), path=tmp_path / "sent.nii.gz"))
    assert store.aside == {}


async def test_a_request_with_an_option_of_its_own_is_asked_about(house):
    service, organs, _ = house
    service.prefetch(HandedOut(key="ct_0", model="organs"))
    await until_async(lambda: organs.finished)
    await service.infer(click(largest_cc="true"))
    assert organs.finished == 2
    await service.infer(click(largest_cc="false", label="liver", result_extension=".nrrd"))
    assert organs.finished == 2


async def test_only_the_named_model_is_made_ready(house):
    service, organs, anything = house
    service.prefetch(HandedOut(key="ct_0", model="anything"))
    await until_async(lambda: anything.finished)
    assert organs.prepared == []
    assert anything.asked[0].clicks == {"foreground": ((3, 3, 2),)}, "a model of whatever is clicked is asked with one"


async def test_the_models_in_use_are_made_ready(house):
    service, organs, anything = house
    await service.infer(click(model="anything", foreground=[[1, 1, 1]]))
    service.prefetch(HandedOut(key="ct_1"))
    await until_async(lambda: 201 in anything.prepared and anything.finished == 2)
    assert organs.prepared == []


async def test_a_click_that_comes_while_an_image_is_segmented_ahead_waits_for_one_window_only(house):
    service, organs, _ = house
    organs.held.clear()
    service.prefetch(HandedOut(key="ct_0", model="organs"))
    await until_async(organs.inside.is_set)
    clicking = asyncio.create_task(service.infer(click(1, liver=[[1, 1, 1]])))
    await until_async(lambda: 201 in organs.prepared)
    organs.held.set()
    await clicking
    assert organs.finished == 1, "the click's answer is the first"
    assert organs.asked[-1].clicks
    await until_async(lambda: organs.finished == 2)
    assert not organs.asked[-1].clicks, "then the image is segmented ahead after all"


async def test_the_same_annotators_next_image_replaces_the_one_before(house):
    service, organs, _ = house
    organs.held.clear()
    service.prefetch(HandedOut(key="ct_0", model="organs"))
    await until_async(organs.inside.is_set)
    for number in (1, 2, 3):
        service.prefetch(HandedOut(key=f"ct_{number}", model="organs"))
    service.prefetch(HandedOut(key="ct_4", model="organs", client_id="other"))
    organs.held.set()
    await until_async(lambda: 204 in organs.prepared and organs.finished == 3)
    assert organs.prepared == [200, 203, 204]


async def test_the_queue_is_bounded(house):
    service, organs, _ = house
    organs.held.clear()
    service.prefetch(HandedOut(key="ct_0", model="organs", user="first"))
    await until_async(organs.inside.is_set)
    for number in range(1, QUEUE + 3):
        service.prefetch(HandedOut(key=f"ct_{number}", model="organs", user=str(number)))
    organs.held.set()
    await until_async(lambda: 200 + QUEUE + 2 in organs.prepared)
    assert organs.prepared == [200, *range(203, 203 + QUEUE)], "those that waited longest are left out"


async def test_what_goes_wrong_ahead_is_told_to_nobody_and_the_next_image_is_made_ready(house):
    service, organs, _ = house
    service.prefetch(HandedOut(key="nothing", model="organs", user="a"))
    service.prefetch(HandedOut(key="ct_1", model="no such model", user="b"))
    service.prefetch(HandedOut(key="ct_2", model="organs", user="c"))
    await until_async(lambda: organs.finished)
    assert organs.prepared == [202]


async def test_an_interrupted_click_leaves_its_thread_as_it_was(house, monkeypatch):
    service, organs, _ = house
    places = record_places(monkeypatch)
    organs.held.clear()
    first = asyncio.create_task(service.infer(InferCall(**{**vars(click(liver=[[1, 1, 1]])), "client_id": "x"})))
    await until_async(organs.inside.is_set)
    second = asyncio.create_task(service.infer(InferCall(**{**vars(click(liver=[[1, 1, 2]])), "client_id": "x"})))
    await until_async(lambda: len(places) == 2)
    organs.held.set()
    with pytest.raises(Superseded, match="newer click"):
        await first
    await second
    assert organs.finished == 1, "the older click ended at its next window"
