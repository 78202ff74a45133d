"""Every kind of prompt in an interaction: it counts, it can be undone and redone, taken up elsewhere and replayed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from deployments.clients import DatastoreClient
from rayapp.app.app_loader import app_class
from rayapp.client import AsyncClient, Client
from rayapp.errors import BadRequest, Conflict
from rayapp.imaging import mask_codec
from rayapp.models.store import ModelStore
from rayapp.serving.service import InferenceService
from tests.gateway.conftest import SHAPE, Serve, Served, write_label
from tests.serving.places import record_places
from tests.waiting import until_async

APP = '''
"""`organs` and `anything` paint the clicked voxels onto what they start from; `strokes` are the scribbles that ship.
`slow` answers in stages: first the last click, then all."""
import threading
import numpy as np
from rayapp.app.label_app import LabelApp
from rayapp.errors import BadRequest
from rayapp.inference.energy import likelihood
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.infer_task import Prediction, TaskInfo

HELD = threading.Event()
HELD.set()

class Painter:
    version = "v1"
    def __init__(self, kind, labels):
        self.info = TaskInfo(type=kind, labels=labels, dimension=3, description="paints")
    def load(self): pass
    def prepare(self, volume): return volume
    def predict(self, prepared, prompts, config):
        labels = np.zeros(prepared.shape, np.uint8, order="F")
        if prompts.start is not None:
            labels[:] = prompts.start
        values = {"foreground": 1, prompts.label: 1, **self.info.labels, "background": 0}
        for name, points in prompts.clicks.items():
            for point in points:
                labels[point] = values[name]
        if prompts.roi:
            inside = np.zeros_like(labels)
            inside[tuple(slice(a, b) for a, b in zip(*prompts.roi))] = 1
            labels *= inside
        return Prediction(labels=labels)

class InStages(Painter):
    def stages(self, prepared, prompts, config):
        labels = np.zeros(prepared.shape, np.uint8, order="F")
        labels[prompts.clicks["liver"][-1]] = 1
        yield Prediction(labels=labels)
        assert HELD.wait(20)
        if len(prompts.clicks["liver"]) > 2:
            raise BadRequest("too many")
        yield self.predict(prepared, prompts, config)

class App(LabelApp):
    def init_infers(self):
        organs = {"background": 0, "liver": 1, "spleen": 2}
        return {"organs": Painter("deepedit", organs), "anything": Painter("deepgrow", {}),
                "slow": InStages("deepedit", organs),
                "strokes": ScribblesTask(fit=likelihood.histogram, description="")}
'''


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "main.py").write_text(APP)
    return serve(app=str(folder), models=())


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, client_id="one") as client:
        yield client


def box(value: int, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return mask


MARKS = np.maximum(box(2, (3, 4, 2), (8, 5, 3)), box(1, (3, 7, 2), (8, 8, 3)))
CURVE = [[2, 2, 3], [2, 8, 3], [9, 8, 3], [9, 2, 3]]
WITHIN = box(1, (2, 2, 3), (10, 9, 4))
SIX = [[3, 5, 3], [10, 6, 3], [7, 2, 4], [8, 9, 3], [6, 6, 1], [6, 7, 5]]
START = np.maximum(box(1, (0, 0, 0), (5, 4, 3)), box(2, (8, 8, 5), (12, 10, 7)))
CLICK = {"liver": [[1, 1, 1]]}

KINDS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "strokes": (
        {"label": "spleen", "marks": MARKS},
        lambda before: np.where(MARKS == 2, 2, np.where(MARKS == 1, 0, before)),
    ),
    "a closed curve": (
        {"label": "spleen", "curves": [CURVE]},
        lambda before: np.where(WITHIN == 1, 2, before),
    ),
    "extreme points": (
        {"extremes": {"spleen": SIX}},
        lambda before: before + 2 * np.isin(np.arange(before.size).reshape(SHAPE), _flat(SIX)),
    ),
    "a mask to start from": ({"start": START}, lambda before: np.where(before > 0, before, START)),
    "a box": ({"roi": [0, 12, 0, 5, 0, 6]}, lambda before: before * box(1, (0, 0, 0), (13, 6, 7))),
}


def _flat(points: list[list[int]]) -> np.ndarray:
    return np.ravel_multi_index(np.transpose(points), SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_any_kind_is_undone_redone_taken_up_elsewhere_and_replayed(
    served: Served, client: Client, kind: str
):
    said, expected = KINDS[kind]
    work = client.open_interaction("organs", "ct_a")
    before = work.prompt(CLICK)
    assert np.argwhere(before).tolist() == [[1, 1, 1]]
    after = expected(before)
    assert np.array_equal(work.prompt(**said), after)
    assert np.array_equal(work.undo(), before)
    assert np.array_equal(work.redo(), after)
    more = work.prompt({"liver": [[12, 10, 6]]}, **({"roi": [0, 12, 0, 10, 0, 6]} if kind == "a box" else {}))
    assert more[12, 10, 6] == 1
    assert np.array_equal(work.undo(), after)
    with renewed(served), Client(served.url) as elsewhere:
        again = elsewhere.interaction(work.id)
        assert np.array_equal(again.mask(), after)
        assert np.array_equal(again.undo(), before)
        steps = [event["step"] for event in again.state()["events"]]
        assert np.array_equal(again.mask(step=steps[1]), after), "a replay of that step"
        assert not again.prompt(reset=True).any()


@pytest.mark.parametrize("kind", ["a box", "a mask to start from"])
def test_a_box_and_a_mask_to_start_from_are_removed_by_none(served: Served, client: Client, kind: str):
    said, expected = KINDS[kind]
    work = client.open_interaction("organs", "ct_a")
    before = work.prompt(CLICK)
    assert np.array_equal(work.prompt(**said), expected(before))
    removed = work.prompt(**dict.fromkeys(said))
    assert np.array_equal(removed, before)
    assert np.array_equal(work.undo(), expected(before))


class renewed:  # noqa: N801 - reads as a verb
    """The server with another replica, which knows nothing."""

    def __init__(self, served: Served) -> None:
        self.served, self.old = served, served.network.service

    def __enter__(self) -> None:
        settings = self.served.settings
        app = app_class(settings)(settings=settings, models=ModelStore.of(settings))
        self.served.network.service = InferenceService(
            settings=settings, app=app, images=DatastoreClient(self.served.store)
        )

    def __exit__(self, *_: object) -> None:
        self.served.network.service.close()
        self.served.network.service = self.old


def test_scribbles_are_prompts_that_add_up(client: Client):
    work = client.open_interaction("strokes", "ct_a")
    first = work.prompt(marks=MARKS)
    assert (first[MARKS == 2] == 1).all()
    assert not first[MARKS == 1].any()
    more = box(1, (3, 4, 2), (5, 5, 3))
    second = work.prompt(marks=more)
    assert not second[more == 1].any(), "the newer stroke is on top"
    assert (second[5:8, 4, 2] == 1).all()
    assert np.array_equal(work.undo(), first)
    assert (work.prompt({"foreground": [[11, 9, 6]]})[11, 9, 6]) == 1


def test_extreme_points_are_enough_for_scribbles_and_bound_the_structure(client: Client):
    mask = client.open_interaction("strokes", "ct_a").prompt(extremes={"foreground": SIX})
    assert all(mask[tuple(point)] == 1 for point in SIX)
    assert np.array_equal(np.argwhere(mask).min(axis=0), np.min(SIX, axis=0))
    assert np.array_equal(np.argwhere(mask).max(axis=0), np.max(SIX, axis=0))


def test_a_model_of_whatever_is_clicked_takes_the_name_that_the_label_gives(client: Client):
    work = client.open_interaction("anything", "ct_a")
    with pytest.raises(BadRequest, match="'liver'"):
        work.prompt({"liver": [[1, 2, 3]]})
    work.prompt({"liver": [[1, 2, 3]]}, label="liver")
    mask = work.prompt({"liver": [[4, 5, 6]], "background": [[7, 7, 1]]})
    assert np.argwhere(mask).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.argwhere(work.undo()).tolist() == [[1, 2, 3]]
    for name in ("roi", "spleen"):
        with pytest.raises(BadRequest, match=name):
            work.prompt({name: [[1, 2, 3]]})
    with pytest.raises(BadRequest, match="roi"):
        work.prompt({"roi": [[1, 2, 3]]}, label="roi")
    six = work.prompt(extremes={"liver": SIX})
    assert np.argwhere(six).tolist() == sorted([*SIX, [1, 2, 3]]), "a click holds beyond the extreme points, too"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"marks": "no base64!", "label": "liver"}, "base64"),
        ({"marks": base64.b64encode(b"rubbish").decode(), "label": "liver"}, "marks"),
        ({"marks": mask_codec.to_text(np.ones((2, 2, 2), np.uint8)), "label": "liver"}, "(2, 2, 2)"),
        ({"marks": mask_codec.to_text(box(3, (1, 1, 1), (2, 2, 2))), "label": "liver"}, "1 for background and 2"),
        ({"marks": mask_codec.to_text(MARKS), "label": "heart"}, "liver, spleen"),
        ({"marks": mask_codec.to_text(MARKS)}, "liver, spleen"),
        ({"curves": [CURVE]}, "liver, spleen"),
        ({"start": mask_codec.to_text(box(3, (1, 1, 1), (2, 2, 2)))}, "at most 2"),
        ({"start": mask_codec.to_text(np.full(SHAPE, 300, np.uint16))}, "up to 255"),
        ({"extremes": {"liver": SIX[:5]}}, "six points"),
        ({"extremes": {"heart": SIX}}, "heart"),
        ({"extremes": {"liver": [[0, 0, 99], *SIX[1:]]}}, "outside"),
    ],
)
def test_a_drawing_that_cannot_be_is_told_and_does_not_count(served: Served, said: dict[str, Any], told: str):
    opened = served.post("/interactions", json={"image": "ct_a", "model": "organs"}).json()["id"]
    answer = served.post(f"/interactions/{opened}/prompts", json=said)
    assert answer.status_code == 400
    assert told in answer.json()["detail"]
    assert served.get(f"/interactions/{opened}").json()["prompts"] == []


def test_scribbles_start_from_no_mask(client: Client):
    with pytest.raises(BadRequest, match="cannot start from a mask"):
        client.open_interaction("strokes", "ct_a").prompt(start=START)


def test_an_inferences_prompts_are_logged_with_label_and_slice(served: Served, client: Client, tmp_path):
    params = {"spleen": [[1, 2, 3]], "label": "spleen", "slice": 3, "extremes": {"liver": SIX}}
    client.infer_box("organs", "ct_b", params=params)
    payload = served.store.events("ct_b")[-1].payload
    assert (payload["label"], payload["slice"]) == ("spleen", 3)
    assert (payload["clicks"], payload["extremes"]) == ({"spleen": [[1, 2, 3]]}, {"liver": SIX})
    label = write_label(tmp_path / "start.nii.gz")
    mask = client.infer("organs", "ct_b", label=label, params={"label_info": [{"name": "spleen", "id": 1}]}).labels()
    assert np.array_equal(np.argwhere(mask == 2), [[2, 3, 1], [12, 10, 6]]), "an uploaded mask is what to start from"
    logged = mask_codec.from_text(served.store.events("ct_b")[-1].payload["start"], SHAPE)
    assert np.array_equal(logged, mask)


def test_a_mask_comes_in_stages_the_rough_one_first(client: Client):
    work = client.open_interaction("slow", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    seen = [np.argwhere(mask).tolist() for mask in work.stream({"liver": [[2, 2, 2]]})]
    assert seen == [[[2, 2, 2]], [[1, 1, 1], [2, 2, 2]]]
    assert work.labels is not None
    assert np.argwhere(work.labels).tolist() == seen[-1]
    assert np.argwhere(work.undo()).tolist() == [[1, 1, 1]], "and goes on from the last of them"


def test_undo_and_redo_come_in_stages_too(client: Client):
    work = client.open_interaction("slow", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    last = work.prompt({"liver": [[2, 2, 2]]})
    assert [np.argwhere(mask).tolist() for mask in work.stream_undo()] == [[[1, 1, 1]], [[1, 1, 1]]]
    seen = [np.argwhere(mask).tolist() for mask in work.stream_redo()]
    assert seen == [[[2, 2, 2]], [[1, 1, 1], [2, 2, 2]]]
    assert np.array_equal(work.labels, last)
    assert len(work.state()["prompts"]) == 2
    with pytest.raises(Conflict, match="nothing to redo"):
        next(work.stream_redo())


def test_undoing_the_only_prompt_is_a_stream_of_one_empty_mask(client: Client):
    work = client.open_interaction("slow", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    *_, left = work.stream_undo()
    assert not left.any()
    with pytest.raises(Conflict, match="nothing to undo"):
        next(work.stream_undo())


def test_what_goes_wrong_after_the_rough_mask_is_told_and_does_not_count(client: Client):
    work = client.open_interaction("slow", "ct_a")
    work.prompt({"liver": [[1, 1, 1], [2, 2, 2]]})
    masks = work.stream({"liver": [[3, 3, 3]]})
    assert np.argwhere(next(masks)).tolist() == [[3, 3, 3]]
    with pytest.raises(BadRequest, match="too many"):
        next(masks)
    assert len(work.state()["prompts"]) == 1


def test_a_prompt_that_cannot_be_is_no_stream(served: Served, client: Client):
    with pytest.raises(BadRequest, match="outside"):
        next(client.open_interaction("slow", "ct_a").stream({"liver": [[99, 1, 1]]}))
    answer = served.post("/interactions/7-0123456789abcdef/stream", json={"slice": 1})
    assert answer.status_code == 404


async def test_a_newer_prompt_ends_the_older_between_its_stages(served: Served, monkeypatch: pytest.MonkeyPatch):
    held, places = _held(served), record_places(monkeypatch)
    async with AsyncClient(served.url) as client:
        work, other = [await client.open_interaction("slow", "ct_a") for _ in range(2)]
        held.clear()
        try:
            blocking = other.stream({"liver": [[9, 9, 1]]})
            await anext(blocking)  # and its second stage holds up the network's thread
            older = asyncio.create_task(_collected(work.stream({"liver": [[1, 1, 1]]})))
            await until_async(lambda: len(places) == 2)
            newer = asyncio.create_task(_collected(work.stream({"liver": [[2, 2, 2]]})))
            await until_async(lambda: len(places) == 3)
        finally:
            held.set()
        with pytest.raises(Conflict, match="newer click"):
            await older
        assert await newer == [[[2, 2, 2]], [[1, 1, 1], [2, 2, 2]]]
        assert [np.argwhere(mask).tolist() async for mask in blocking] == [[[9, 9, 1]]], "another's is not cancelled"


async def _collected(masks: AsyncIterator[np.ndarray]) -> list[Any]:
    return [np.argwhere(mask).tolist() async for mask in masks]


def _held(served: Served) -> Any:
    task = served.network.service._serving.app.infers["slow"]
    return type(task).stages.__globals__["HELD"]


def streamed(served: Served, path: str, body: dict[str, Any], last: str = "") -> list[tuple[str, str, Any]]:
    """(kind, id, data) of each event of an answer, of which the client has those up to `last`."""
    answer = served.post(path, json=body, headers={"Last-Event-ID": last} if last else {})
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.text
    events = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def shown(events: list[tuple[str, str, Any]], mask: np.ndarray) -> np.ndarray:
    """The last mask of the events, to a client that has `mask`."""
    for kind, _, data in events:
        if kind == "mask":
            onto = mask if data["params"]["interaction"]["onto"] else None
            mask = mask_codec.decode(base64.b64decode(data["mask"]), onto)
    return mask


def test_events_are_read_by_anyone(served: Served):
    opened = served.post("/interactions", json={"image": "ct_a", "model": "slow"}).json()["id"]
    events = streamed(served, f"/interactions/{opened}/stream", {"clicks": {"liver": [[1, 2, 3]]}})
    assert [kind for kind, _, _ in events] == ["mask", "mask", "end"]
    assert np.argwhere(shown(events, np.zeros(SHAPE, np.uint8))).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("kind", ["stream", "undo/stream", "redo/stream"])
def test_a_stream_that_broke_off_goes_on_without_gaps_or_repeats(served: Served, client: Client, kind: str):
    work = client.open_interaction("slow", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    if kind != "stream":
        work.prompt({"liver": [[2, 2, 2]]})
    if kind == "redo/stream":
        work.undo()
    path = f"/interactions/{work.id}/{kind}"
    body = {"request": "once", **({"clicks": {"liver": [[3, 3, 3]]}} if kind == "stream" else {})}
    before, zeros = len(work.state()["events"]), np.zeros(SHAPE, np.uint8)
    events = streamed(served, path, body)
    assert [kind for kind, _, _ in events] == ["mask", "mask", "end"]
    assert len({event_id for _, event_id, _ in events[:2]}) == 2
    whole = shown(events, zeros)
    for had in range(3):
        last = events[had - 1][1] if had else ""
        rest = streamed(served, path, body, last)
        assert [kind for kind, _, _ in rest] == [kind for kind, _, _ in events[had:]]
        assert np.array_equal(shown(rest, shown(events[:had], zeros)), whole)
    assert len(work.state()["events"]) == before + 1, "it counts once"


def test_a_stream_goes_on_with_the_newest_answer_if_there_were_more_prompts(served: Served, client: Client):
    work = client.open_interaction("slow", "ct_a")
    path, body = f"/interactions/{work.id}/stream", {"request": "once", "clicks": {"liver": [[1, 1, 1]]}}
    events = streamed(served, path, body)
    newest = work.prompt({"liver": [[2, 2, 2]]})
    rest = streamed(served, path, body, events[1][1])
    assert [kind for kind, _, _ in rest] == ["mask", "mask", "end"]
    assert np.array_equal(shown(rest, shown(events, np.zeros(SHAPE, np.uint8))), newest)


@pytest.mark.parametrize("last", ["7", "0.0.0123456789abcdef.0123456789abcdef", "x" * 100, "é"])
def test_a_stream_behind_an_event_that_is_none_of_its_own_is_the_whole_answer(
    served: Served, client: Client, last: str
):
    work = client.open_interaction("slow", "ct_a")
    body = {"clicks": {"liver": [[1, 1, 1]]}, "onto": "fedcba9876543210"}
    events = streamed(served, f"/interactions/{work.id}/stream", body, last)
    assert [kind for kind, _, _ in events] == ["mask", "mask", "end"]
    assert np.argwhere(shown(events, np.ones(SHAPE, np.uint8))).tolist() == [[1, 1, 1]]
