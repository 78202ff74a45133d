"""`/interactions` on the wire: prompts, undo and redo, other annotators, other machines, other versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deployments.clients import DatastoreClient
from rayapp.app.app_loader import app_class
from rayapp.client import AsyncClient, Client
from rayapp.errors import BadRequest, Conflict
from rayapp.imaging.mask_codec import decode
from rayapp.models.store import ModelStore
from rayapp.protocol import MASK_MEDIA_TYPE, PARAMS_HEADER, Role
from rayapp.serving.service import InferenceService
from tests.gateway.conftest import SHAPE, Serve, Served

APP = '''
"""Paints a cube around every click: how far it reaches is the model's weight."""
import numpy as np, torch
from safetensors.torch import load_file, save_file
from rayapp.app.label_app import LabelApp
from rayapp.errors import BadRequest
from rayapp.inference.infer_task import Prediction, TaskInfo

class Painter:
    def __init__(self, version):
        self.version, self.weights = version.version, version.weights
        self.info = TaskInfo(type="deepedit", labels={"background": 0, "liver": 1, "spleen": 2}, dimension=3,
                             description="paints", version=version.version)
    def load(self):
        self.reach = int(load_file(self.weights)["reach"])
    def prepare(self, volume):
        return volume
    def predict(self, prepared, prompts, config):
        if prompts.clicks.get("foreground"):
            raise BadRequest("foreground of what?")
        labels = np.zeros(prepared.shape, np.uint8, order="F")
        for name, value in (("liver", 1), ("spleen", 2), ("background", 0)):
            for point in prompts.clicks.get(name, ()):
                labels[tuple(slice(max(0, n - self.reach), n + self.reach + 1) for n in point)] = value
        return Prediction(labels=labels)

class App(LabelApp):
    @classmethod
    def install(cls, settings, models):
        if not models.versions("painter"):
            weights = settings.workspace / "reach.safetensors"
            weights.parent.mkdir(parents=True, exist_ok=True)
            save_file({"reach": torch.tensor(0)}, weights)
            models.publish("painter", weights, {})
    def init_infers(self):
        return {"painter": self.make_task(self.models.production("painter"))}
    def make_task(self, version):
        return Painter(version)
'''


@pytest.fixture(scope="module")
def painted(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("painter")
    (folder / "main.py").write_text(APP)
    return serve(app=str(folder))


@pytest.fixture(scope="module")
def guarded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("guarded painter")
    (folder / "main.py").write_text(APP)
    return serve(app=str(folder), auth="token")


@pytest.fixture
def client(painted: Served) -> Iterator[Client]:
    with Client(painted.url, client_id="one") as client:
        yield client


def opened(served: Served, image: str = "ct_a", **given: Any) -> str:
    answer = served.post("/interactions", json={"image": image, "model": "painter"}, **given)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def mask_of(*clicks: tuple[tuple[int, int, int], int]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for point, value in clicks:
        mask[point] = value
    return mask


def test_prompts_add_up_and_can_be_undone_and_redone_any_number_of_steps(client: Client):
    work = client.open_interaction("painter", "ct_a")
    masks = [np.zeros(SHAPE, np.uint8)]
    for n in range(4):
        masks.append(work.prompt({"liver" if n % 2 else "spleen": [[n, n + 1, n]]}))
        assert np.argwhere(masks[-1]).tolist() == [[m, m + 1, m] for m in range(n + 1)]
    for mask in reversed(masks[:-1]):
        assert np.array_equal(work.undo(), mask)
    with pytest.raises(Conflict, match="nothing to undo"):
        work.undo()
    for mask in masks[1:]:
        assert np.array_equal(work.redo(), mask)
    with pytest.raises(Conflict, match="nothing to redo"):
        work.redo()
    assert work.labels is not None
    assert np.array_equal(work.labels, masks[-1])
    state = work.state()
    assert [prompt["clicks"] for prompt in state["prompts"]] == [
        {"liver" if n % 2 else "spleen": [[n, n + 1, n]]} for n in range(4)
    ]
    assert [event["kind"] for event in state["events"]] == ["prompt"] * 4 + ["undo"] * 4 + ["redo"] * 4


def test_a_new_prompt_ends_what_could_be_redone_and_a_reset_can_be_undone(client: Client):
    work = client.open_interaction("painter", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    work.undo()
    work.prompt({"liver": [[2, 2, 2]]}, slice=0)
    assert not work.state()["can_redo"]
    work.prompt({"spleen": [[3, 3, 3]]}, reset=True)
    assert np.array_equal(work.labels, mask_of(((3, 3, 3), 2)))
    assert np.array_equal(work.undo(), mask_of(((2, 2, 2), 1)))


def test_an_answer_holds_only_what_changed_since_the_mask_that_the_client_holds(painted: Served):
    path = f"/interactions/{opened(painted)}"
    first = painted.post(f"{path}/prompts", json={"clicks": {"liver": [[1, 2, 3]]}})
    assert first.headers["Content-Type"] == MASK_MEDIA_TYPE
    told = json.loads(first.headers[PARAMS_HEADER])["interaction"]
    assert (told["onto"], told["can_undo"], told["can_redo"]) == ("", True, False)
    second = painted.post(f"{path}/prompts", json={"clicks": {"spleen": [[9, 8, 6]]}, "onto": told["mask"]})
    assert json.loads(second.headers[PARAMS_HEADER])["interaction"]["onto"] == told["mask"]
    assert np.array_equal(decode(second.content), mask_of(((9, 8, 6), 2))), "the first click's voxel is not sent again"
    both = mask_of(((9, 8, 6), 2), ((1, 2, 3), 1))
    assert np.array_equal(decode(second.content, decode(first.content)), both)
    stranger = painted.post(f"{path}/prompts", json={"slice": 1, "onto": "unknown here"})
    assert json.loads(stranger.headers[PARAMS_HEADER])["interaction"]["onto"] == ""
    assert np.array_equal(decode(stranger.content), both)


def test_two_annotators_on_one_image_do_not_see_each_others_clicks(client: Client):
    ann, bob = client.open_interaction("painter", "ct_b"), client.open_interaction("painter", "ct_b")
    ann.prompt({"liver": [[1, 1, 1]]})
    assert np.array_equal(bob.prompt({"spleen": [[2, 2, 2]]}), mask_of(((2, 2, 2), 2)))
    assert np.array_equal(ann.prompt({"liver": [[3, 3, 3]]}), mask_of(((1, 1, 1), 1), ((3, 3, 3), 1)))
    with pytest.raises(Conflict):
        (bob.undo(), bob.undo())
    assert len(ann.state()["prompts"]) == 2
    assert [state["id"] for state in client.interactions("ct_b")] == [ann.id, bob.id]


def test_another_machine_goes_on_though_the_replica_is_a_new_one(painted: Served, client: Client):
    work = client.open_interaction("painter", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    work.prompt({"liver": [[2, 2, 2]]})
    work.undo()
    settings, old = painted.settings, painted.network.service
    app = app_class(settings).of(settings)
    app.load_all()
    painted.network.service = InferenceService(settings=settings, app=app, images=DatastoreClient(painted.store))
    try:
        with Client(painted.url, client_id="another") as elsewhere:
            again = elsewhere.interaction(work.id)
            assert np.array_equal(again.mask(), mask_of(((1, 1, 1), 1)))
            both = again.prompt({"spleen": [[5, 5, 5]]})
            assert np.array_equal(both, mask_of(((1, 1, 1), 1), ((5, 5, 5), 2)))
        assert np.array_equal(work.undo(), mask_of(((1, 1, 1), 1))), "and the first machine sees that"
    finally:
        painted.network.service.close()
        painted.network.service = old


def test_a_request_sent_twice_counts_once(painted: Served):
    name = opened(painted)
    for _ in range(2):
        answer = painted.post(f"/interactions/{name}/prompts", json={"clicks": {"liver": [[1, 2, 3]]}, "request": "r"})
        assert np.array_equal(decode(answer.content), mask_of(((1, 2, 3), 1)))
    assert len(painted.get(f"/interactions/{name}").json()["events"]) == 1
    for _ in range(2):
        answer = painted.post(f"/interactions/{name}/undo", json={"request": "u"})
        assert answer.status_code == 200
        assert not decode(answer.content).any()


def test_a_logged_interaction_is_replayed_step_by_step_under_another_version(painted: Served, client: Client):
    work = client.open_interaction("painter", "ct_a")
    work.prompt({"liver": [[5, 5, 3]]})
    work.prompt({"spleen": [[9, 5, 3]]})
    weights = painted.settings.workspace / "wider.safetensors"
    save_file({"reach": torch.tensor(1)}, weights)
    wider = ModelStore.of(painted.settings).publish("painter", weights, {}, promote=False)
    first, second = (event["step"] for event in work.state()["events"])
    before = len(painted.store.events("ct_a"))
    assert np.count_nonzero(work.mask(step=first)) == 1
    assert np.count_nonzero(work.mask(step=first, version=wider.version)) == 27
    assert np.count_nonzero(work.mask(step=second, version=wider.version)) == 54
    assert not work.mask(step=0, version=wider.version).any()
    assert np.count_nonzero(work.mask()) == 2, "the newest step, by the version that serves"
    assert len(painted.store.events("ct_a")) == before, "a replay is not logged"
    assert painted.get(f"/interactions/{work.id}/mask?version=v99").status_code == 404
    assert painted.get(f"/interactions/{work.id}/mask?model=nothing").status_code == 404


def test_prompts_are_in_the_log_with_the_version_that_answered(painted: Served, client: Client):
    work = client.open_interaction("painter", "ct_a")
    work.prompt({"liver": [[1, 1, 1]]})
    event = painted.store.events("ct_a")[-1]
    assert (event.kind, event.model, event.model_version, event.client_id) == ("prompt", "painter", "v1", "one")
    assert event.payload["clicks"] == {"liver": [[1, 1, 1]]}


@pytest.mark.parametrize(
    ("prompt", "status", "said"),
    [
        ({"clicks": {"liver": [[13, 0, 0]]}}, 400, "outside"),
        ({"clicks": {"heart": [[1, 1, 1]]}}, 400, "liver, spleen"),
        ({"clicks": {"roi": [[1, 1, 1]]}}, 400, "has no label 'roi'"),
        ({"clicks": {"Liver": [[1, 1, 1]]}}, 400, "did you mean 'liver'?"),
        ({"extremes": {"livre": [[1, 1, 1]] * 6}}, 400, "did you mean 'liver'?"),
        ({"clicks": {"foreground": [[1, 1, 1]]}}, 400, "foreground of what?"),
        ({"roi": [1, 2]}, 400, "roi"),
        ({"slice": 99}, 400, "slice"),
        ({"curves": [[[1, 1, 1]]]}, 400, "curves"),
        ({}, 400, "needs"),
        ({"request": "r", "onto": ""}, 400, "needs"),
        ({"clicks": {"liver": [[1, 1]]}}, 422, "liver"),
        ({"clicks": {"liver": [[1, 1.5, 1]]}}, 422, "liver"),
        ({"click": {"liver": [[1, 1, 1]]}}, 422, "click"),
    ],
)
def test_a_prompt_that_cannot_be_is_told_and_does_not_count(
    painted: Served, prompt: dict[str, Any], status: int, said: str
):
    name = opened(painted)
    assert painted.post(f"/interactions/{name}/prompts", json={"clicks": {"liver": [[1, 1, 1]]}}).status_code == 200
    answer = painted.post(f"/interactions/{name}/prompts", json=prompt)
    assert answer.status_code == status
    assert said in answer.text
    state = painted.get(f"/interactions/{name}").json()
    assert [found["clicks"] for found in state["prompts"]] == [{"liver": [[1, 1, 1]]}]
    mask = decode(painted.get(f"/interactions/{name}/mask").content)
    assert np.array_equal(mask, mask_of(((1, 1, 1), 1)))


def test_what_is_not_there_is_told(painted: Served):
    name = opened(painted)
    forged = name.partition("-")[0] + "-" + "0" * 16
    for unknown in (forged, "999999999-0123456789abcdef", "x", "9" * 30 + "-0123456789abcdef"):
        assert painted.get(f"/interactions/{unknown}").status_code == 404
        assert painted.post(f"/interactions/{unknown}/undo", json={}).status_code == 404
    for wrong in ({"image": "none", "model": "painter"}, {"image": "ct_a", "model": "none"}):
        assert painted.post("/interactions", json=wrong).status_code == 404
    assert painted.post("/interactions", json={"image": "../x", "model": "painter"}).status_code == 400
    assert painted.post(f"/interactions/{name}/undo", json={}).status_code == 409
    assert painted.post(f"/interactions/{name}/redo", json={}).status_code == 409


def test_an_interaction_is_its_users_and_reviewers_may_look(guarded: Served):
    def signed(name: str, role: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {guarded.users.add(name, role)}"}

    ann, bob = signed("ann", Role.ANNOTATOR), signed("bob", Role.ANNOTATOR)
    reviewer = signed("rita", Role.REVIEWER)
    name = opened(guarded, headers=ann)
    click = {"clicks": {"liver": [[1, 1, 1]]}}
    assert guarded.post(f"/interactions/{name}/prompts", json=click, headers=ann).status_code == 200
    for headers in (bob, reviewer):
        assert guarded.post(f"/interactions/{name}/prompts", json=click, headers=headers).status_code == 403
        assert guarded.post(f"/interactions/{name}/undo", json={}, headers=headers).status_code == 403
        assert guarded.get("/interactions?image=ct_a", headers=headers).json() == []
    for path in (f"/interactions/{name}", f"/interactions/{name}/mask", "/interactions?image=ct_a&user=ann"):
        assert guarded.get(path, headers=bob).status_code == 403
        assert guarded.get(path, headers=reviewer).status_code == 200
    assert len(guarded.get(f"/interactions/{name}", headers=ann).json()["prompts"]) == 1


async def test_turns_side_by_side_all_count_and_the_last_mask_has_them_all(painted: Served):
    import asyncio

    async with AsyncClient(painted.url) as client:
        work = await client.open_interaction("painter", "ct_a")
        points = [[n, n, n] for n in range(6)]
        await asyncio.gather(*(work.prompt({"liver": [point]}) for point in points), return_exceptions=True)
        assert work.labels is not None
        assert np.argwhere(work.labels).tolist() == points
        assert len((await work.state())["prompts"]) == 6


def test_the_clients_zero_slice_is_sent(painted: Served, client: Client):
    work = client.open_interaction("painter", "ct_a")
    work.prompt(slice=0)
    assert work.state()["prompts"][0]["slice"] == 0
    with pytest.raises(BadRequest):
        work.prompt({"heart": [[1, 1, 1]]})


def test_the_image_of_a_new_interaction_is_made_ready_for_its_model(painted: Served):
    before = len(painted.network.handed_out)
    painted.post("/interactions", json={"image": "ct_a", "model": "painter", "client_id": "me"})
    (told,) = painted.network.handed_out[before:]
    assert (told.key, told.model, told.user, told.client_id) == ("ct_a", "painter", "admin", "me")
