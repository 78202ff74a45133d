"""A click's way through one replica, on the plain object: caches, newest click first, the click log."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import BadRequest, NotFound, Superseded
from rayapp.imaging.mask_codec import decode
from rayapp.inference.infer_task import Prediction, TaskInfo
from rayapp.inference.network import cancellation
from rayapp.models.store import ModelStore
from rayapp.protocol import Output
from rayapp.serving.cache import ByteCache
from rayapp.serving.interaction import PROMPT, REDO, UNDO, Interaction, opening_event
from rayapp.serving.messages import InferCall, Turn
from rayapp.serving.service import InferenceService
from tests.serving.places import record_places
from tests.waiting import until_async


class App(LabelApp):
    """No models but those that a test puts in."""


class Threshold:
    """A task whose answer is plain: what is brighter than 100. It can be held up in its network."""

    info = TaskInfo(type="deepedit", labels={"background": 0, "bright": 1}, dimension=3, description="threshold")
    version = "v1"

    def __init__(self):
        self.prepared = 0
        self.started = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def load(self):
        pass

    def prepare(self, volume):
        self.prepared += 1
        return volume

    def predict(self, prepared, prompts, config):
        self.started.set()
        assert self.go.wait(60)
        return Prediction(labels=(prepared.array[0] > 100).astype(np.uint8))


class Store:
    """The methods that the service needs of a datastore, over one folder."""

    def __init__(self, folder):
        self.folder, self.log, self.aside = folder, [], {}

    async def quarantine(self, image_id, reason):
        self.aside[image_id] = reason

    async def image(self, image_id):
        path = self.folder / f"{image_id}.nii.gz"
        if not path.exists():
            raise NotFound(image_id)
        return ImageRecord(id=image_id, path=path, ext=".nii.gz")

    async def append_events(self, events):
        self.log += events
        return [len(self.log)]

    async def append_turn(self, event, *, opened, after):
        self.log.append(replace(event, seq=opened + len(self.log) + 1))
        return [logged for logged in self.log if logged.seq > after]

    async def events(self, image_id, *, user=None, after=0):
        return [logged for logged in self.log if logged.seq > after]


class Ordered(Threshold):
    """A task that depends on the order of the prompts; `asked` has those of each call."""

    info = TaskInfo(type="deepgrow", labels={}, dimension=3, description="", drawings=True, ordered=True)

    def __init__(self):
        super().__init__()
        self.asked = []

    def predict(self, prepared, prompts, config):
        self.asked.append(prompts)
        return super().predict(prepared, prompts, config)


class Windows(Threshold):
    """A segmentation of many windows; the first one waits for `go`."""

    info = TaskInfo(type="segmentation", labels={"background": 0, "bright": 1}, dimension=3, description="")

    def predict(self, prepared, prompts, config):
        answer = super().predict(prepared, prompts, config)
        self.order.append("first window")
        for _ in range(3):
            cancellation.checkpoint()
            self.order.append("window")
        return answer


def write(folder, value):
    array = np.zeros((7, 6, 5), np.int16)
    array[1, 2, 3] = value
    nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(folder / "ct.nii.gz")


@pytest.fixture
def house(tmp_path):
    write(tmp_path, 200)
    settings = Settings(studies=tmp_path, workspace=tmp_path / "ws")
    app = App(settings=settings, models=ModelStore.of(settings))
    task, store = Threshold(), Store(tmp_path)
    app.infers = {"threshold": task}
    service = InferenceService(settings=settings, app=app, images=store)
    yield service, task, store
    task.go.set()
    service.close()


def click(**changes):
    given = {"model": "threshold", "key": "ct", "params": {"bright": [[1, 2, 3]]}, "output": Output.BOX}
    return InferCall(**{**given, **changes})


async def test_the_answer_is_on_the_images_grid(house):
    service, _, _ = house
    labels = decode((await service.infer(click())).body)
    assert labels.shape == (7, 6, 5)
    assert np.argwhere(labels).tolist() == [[1, 2, 3]]


async def test_an_image_is_prepared_once_for_many_clicks(house):
    service, task, _ = house
    await asyncio.gather(*(service.infer(click()) for _ in range(5)))
    assert task.prepared == 1


async def test_a_replaced_file_is_read_again(house):
    service, task, store = house
    await service.infer(click())
    write(store.folder, 50)
    labels = decode((await service.infer(click())).body)
    assert task.prepared == 2
    assert not labels.any()


async def test_clicks_are_in_the_log_before_the_answer(house):
    service, _, store = house
    await service.infer(click(user="ann", client_id="slicer"))
    (event,) = store.log
    assert (event.user, event.model_version) == ("ann", "v1")
    assert event.payload["clicks"] == {"bright": [(1, 2, 3)]}


async def test_a_model_that_depends_on_the_order_of_an_interactions_prompts_gets_them_one_by_one(house):
    service, _, _ = house
    task = Ordered()
    service._serving.app.infers = {"ordered": task}
    opened = Interaction.of(
        replace(opening_event(image_id="ct", model="ordered", user="ann", client_id=None, ts=1.0), seq=7)
    )
    clicks = [{"background": [[0, 0, 0]], "bright": []}, {"bright": [[1, 2, 3]]}, {"background": [[4, 4, 4]]}]
    for number, points in enumerate(clicks):
        prompt = {"clicks": points, "label": "bright"}
        event = opened.event(PROMPT, prompt, request=str(number), client_id=None, ts=1.0)
        await service.infer(click(model="ordered", user="ann", turn=Turn(interaction=opened, event=event)))
    last = task.asked[-1]
    assert [dict(turn.clicks) for turn in last.turns] == [
        {"background": ((0, 0, 0),)},
        {"bright": ((1, 2, 3),)},
        {"background": ((4, 4, 4),)},
    ]
    assert last.clicks["background"] == [(0, 0, 0), (4, 4, 4)]
    assert all(turn.label == "bright" for turn in last.turns)


@pytest.mark.parametrize("client_id", [None, "slicer"])
async def test_a_call_that_its_caller_gave_up_ends_at_the_next_window(house, client_id):
    service, _, _ = house
    long = Windows()
    long.order = order = []
    service._serving.app.infers = {"windows": long}
    long.go.clear()
    call = asyncio.create_task(service.infer(click(model="windows", params={}, client_id=client_id)))
    await until_async(long.started.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call  # at once, whatever its thread still does
    long.go.set()
    await service.infer(click(model="windows", params={}, client_id=client_id))
    assert order == ["first window", "first window", "window", "window", "window"]


class Picky(Threshold):
    """A task that cannot work with a click on the voxel (6, 5, 4), which is found out in the network only."""

    def predict(self, prepared, prompts, config):
        if (6, 5, 4) in {point for points in prompts.clicks.values() for point in points}:
            raise BadRequest("not there")
        return super().predict(prepared, prompts, config)


class InStages(Threshold):
    """A task that answers in two stages."""

    def stages(self, prepared, prompts, config):
        yield Prediction(labels=np.zeros(prepared.shape, np.uint8))
        yield self.predict(prepared, prompts, config)


@pytest.mark.parametrize("change", ["nothing", "another replica", "another version"])
async def test_an_answer_that_broke_off_goes_on_at_any_replica_and_version(house, change):
    service, _, _ = house
    service._serving.app.infers = {"staged": InStages()}
    event = opening_event(image_id="ct", model="staged", user="ann", client_id=None, ts=1.0)
    opened = Interaction.of(replace(event, seq=7))
    prompt = opened.event(PROMPT, {"clicks": {"bright": [[1, 2, 3]]}}, request="1", client_id=None, ts=1.0)

    async def replies(last=""):
        turn = Turn(interaction=opened, event=prompt, last_event=last)
        return [reply async for reply in service.stream(click(model="staged", user="ann", turn=turn))]

    first, second = await replies()
    if change == "another version":
        service._serving.app.infers["staged"].version = "v2"
    if change == "another replica":
        service._log._masks = ByteCache(1 << 20)
    rest = await replies(first.event)
    assert len(rest) == (2 if change == "another version" else 1)
    told = rest[-1].params["interaction"]
    assert bool(told["onto"]) is (change != "another replica"), "which does not know the mask that the client has"
    labels = decode(rest[-1].body, decode(first.body) if told["onto"] else None)
    assert np.array_equal(labels, decode(second.body, decode(first.body)))
    assert len(await replies(second.event)) == (2 if change == "another version" else 0)


GOOD, OTHER, BAD = [1, 2, 3], [2, 2, 2], [6, 5, 4]


class Picked:
    """An interaction with a model that is picky. `say` logs a prompt that the model never gets to see, as one that a
    newer one supersedes; `ask` waits for the answer."""

    def __init__(self, house):
        self.service, _, self.store = house
        self.service._serving.app.infers = {"picky": Picky()}
        event = opening_event(image_id="ct", model="picky", user="ann", client_id=None, ts=1.0)
        self.opened = Interaction.of(replace(event, seq=7))
        self.requests = 0

    def event(self, point, kind=PROMPT):
        self.requests += 1
        prompt = {} if point is None else {"clicks": {"bright": [point]}}
        return self.opened.event(kind, prompt, request=str(self.requests), client_id=None, ts=1.0)

    async def say(self, point):
        await self.store.append_turn(self.event(point), opened=7, after=10**9)

    async def ask(self, point, kind=PROMPT):
        turn = Turn(interaction=self.opened, event=self.event(point, kind))
        return await self.service.infer(click(model="picky", user="ann", turn=turn))

    def now(self):
        at = self.opened
        for event in self.store.log:
            at = at.after(event)
        return at

    @property
    def points(self):
        return [point for prompt in self.now().done for point in prompt["clicks"]["bright"]]


async def test_a_refused_prompt_that_was_superseded_is_withdrawn_and_later_ones_are_answered(house):
    picked = Picked(house)
    await picked.ask(GOOD)
    await picked.say(BAD)
    await picked.say(OTHER)
    for number in range(2):
        assert (await picked.ask([3, 3, number])).body
        assert picked.points == [GOOD, OTHER, *([3, 3, each] for each in range(number + 1))]


async def test_a_refused_prompt_behind_one_that_was_superseded_is_the_one_that_does_not_count(house):
    picked = Picked(house)
    await picked.say(GOOD)
    with pytest.raises(BadRequest, match="not there"):
        await picked.ask(BAD)
    assert picked.points == [GOOD]


async def test_a_replica_that_took_over_withdraws_no_prompt_that_another_one_has_answered(house):
    picked = Picked(house)
    await picked.ask(GOOD)
    await picked.ask(OTHER)
    picked.service._log._answered.clear()
    with pytest.raises(BadRequest, match="not there"):
        await picked.ask(BAD)
    assert picked.points == [GOOD, OTHER]


async def test_refused_prompts_leave_what_can_be_redone(house):
    picked = Picked(house)
    await picked.ask(GOOD)
    await picked.ask(OTHER)
    await picked.ask(None, UNDO)
    await picked.say(BAD)
    with pytest.raises(BadRequest, match="not there"):
        await picked.ask(BAD)
    assert (picked.points, len(picked.now().undone)) == ([GOOD, BAD], 0)
    await picked.ask(None, UNDO)
    assert picked.points == [GOOD]
    await picked.ask(None, REDO)


async def test_an_undo_that_leaves_a_refused_prompt_in_force_withdraws_it(house):
    picked = Picked(house)
    await picked.ask(GOOD)
    await picked.say(BAD)
    await picked.say(OTHER)
    assert (await picked.ask(None, UNDO)).body
    assert picked.points == [GOOD]


async def test_a_click_waits_for_one_window_of_a_segmentation_at_most(house):
    service, task, _ = house
    long = Windows()
    long.order = order = []
    predict = task.predict
    task.predict = lambda *given: (order.append("click"), predict(*given))[1]
    service._serving.app.infers = {"threshold": task, "windows": long}
    long.go.clear()
    segmentation = asyncio.create_task(service.infer(click(model="windows", params={})))
    await until_async(long.started.is_set)
    clicked = asyncio.create_task(service.infer(click()))
    await until_async(lambda: service._executors.click_waits)
    long.go.set()
    await asyncio.gather(segmentation, clicked)
    assert order == ["first window", "click", "window", "window", "window"]


async def test_a_newer_click_of_the_same_annotator_replaces_one_that_waits(house, monkeypatch):
    service, task, _ = house
    places = record_places(monkeypatch)
    task.go.clear()
    running = asyncio.create_task(service.infer(click(client_id="other")))
    await until_async(task.started.is_set)
    waiting = asyncio.create_task(service.infer(click(client_id="slicer")))
    await until_async(lambda: len(places) == 2)
    newest = asyncio.create_task(service.infer(click(client_id="slicer")))
    await until_async(lambda: len(places) == 3)
    task.go.set()
    with pytest.raises(Superseded):
        await waiting
    assert (await newest).body
    assert (await running).body


async def test_an_unknown_model_is_named(house):
    service, _, _ = house
    with pytest.raises(NotFound, match="threshold"):
        await service.infer(click(model="nothing"))


async def test_a_click_outside_the_image_is_refused_and_not_logged(house):
    service, _, store = house
    with pytest.raises(BadRequest):
        await service.infer(click(params={"bright": [[7, 0, 0]]}))
    assert store.log == []


async def test_what_is_no_mask_is_sent_in_its_place(house):
    service, task, _ = house
    found = Prediction(labels=np.zeros((7, 6, 5), np.uint8), document=b'{"boxes": []}')
    task.predict = lambda *_: found
    reply = await service.infer(click(output=Output.ALL))
    assert (reply.body, reply.ext) == (b'{"boxes": []}', ".json")
    assert (await service.infer(click(output=Output.JSON))).body is None


async def test_what_needs_no_network_makes_no_click_wait(house):
    service, _, _ = house
    strokes = Threshold()
    strokes.needs_network = lambda _: False
    strokes.go.clear()
    service._serving.app.infers["strokes"] = strokes
    drawing = [asyncio.create_task(service.infer(click(model="strokes", client_id=name))) for name in "ab"]
    await until_async(strokes.started.is_set)
    assert (await asyncio.wait_for(service.infer(click()), 60)).body
    assert not any(one.done() for one in drawing)
    strokes.go.set()
    assert all(reply.body for reply in await asyncio.gather(*drawing))
