"""Calls to the datastore that a request costs: each is a trip to another process, maybe to another machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.client import ActorClient
from deployments.clients import DatastoreClient
from rayapp.app.app_loader import app_class
from rayapp.client import Client
from rayapp.errors import Conflict
from rayapp.serving.service import InferenceService
from tests.gateway.conftest import Serve, Served, write_label
from tests.gateway.test_interactions import APP


@pytest.fixture(scope="module")
def painted(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("painter")
    (folder / "main.py").write_text(APP)
    return serve(app=str(folder))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datastore's methods that were called from elsewhere."""
    made: list[str] = []
    method = ActorClient._method

    def counted(client: ActorClient[Any], name: str, patience: float) -> Callable[..., Any]:
        if isinstance(client, DatastoreClient):
            made.append(name)
        return method(client, name, patience)

    monkeypatch.setattr(ActorClient, "_method", counted)
    return made


def click(number: int) -> dict[str, list[tuple[int, int, int]]]:
    return {"liver": [(number, 2, 1)]}


def test_a_prompt_an_undo_and_a_redo_cost_one_call_each(painted: Served, calls: list[str]) -> None:
    with Client(painted.url) as client:
        work = client.open_interaction("painter", "ct_a")
        work.prompt(click(1))
        calls.clear()
        for step in (lambda: work.prompt(click(2)), work.undo, work.redo, lambda: list(work.stream(click(3)))):
            step()
            assert calls == ["append_turn"]
            calls.clear()


def test_a_prompt_on_top_of_another_replicas_costs_one_more_and_counts_both(painted: Served, calls: list[str]) -> None:
    network = painted.network
    with Client(painted.url) as client:
        work = client.open_interaction("painter", "ct_b")
        work.prompt(click(1))
        service, app = network.service, app_class(painted.settings).of(painted.settings)
        app.load_all()
        other = InferenceService(settings=painted.settings, app=app, images=DatastoreClient(painted.store))
        network.service = other
        work.prompt(click(2))
        network.service = service
        other.close()
        calls.clear()
        mask = work.prompt(click(3))
        assert calls == ["append_turn", "append_turn"]
        assert [mask[number, 2, 1] for number in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_an_undo_that_this_replica_knows_nothing_to_undo_for_looks_at_the_log_first(
    painted: Served, calls: list[str]
) -> None:
    with Client(painted.url) as client:
        work = client.open_interaction("painter", "ct_b")
        with pytest.raises(Conflict, match="nothing to undo"):
            work.undo()
        assert calls[-1] == "events"


def test_an_inference_on_an_open_image_costs_none_and_its_clicks_are_logged_after_it(
    painted: Served, calls: list[str]
) -> None:
    def infer(**params: Any) -> list[str]:
        calls.clear()
        answer = painted.post("/infer/painter?image=ct_a&output=image", data={"params": json.dumps(params)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"].endswith('.nii.gz"')
        return list(calls)

    infer()
    assert infer() == []
    assert infer(result_extension=".nii.gz") == []
    assert infer(liver=[[1, 2, 3]]) == ["append_events"]


def test_a_prediction_is_saved_by_one_call(painted: Served, calls: list[str]) -> None:
    painted.post("/infer/painter?image=ct_a&output=json", data={"params": json.dumps({"save_label": True})})
    calls.clear()
    answer = painted.post("/infer/painter?image=ct_a&output=json", data={"params": json.dumps({"save_label": True})})
    assert answer.status_code == 200, answer.text
    assert calls == ["save_label"]
    assert painted.staged() == []


def test_an_upload_asks_for_no_place_to_stage_it(painted: Served, calls: list[str], tmp_path: Path) -> None:
    label = write_label(tmp_path / "label.nii.gz")
    painted.save("ct_a", label)
    calls.clear()
    assert painted.save("ct_a", label).status_code == 200
    assert calls == ["image", "save_label"]
