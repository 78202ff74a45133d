"""Whoever gets an image to work on finds it ready: the replica hears of it when it is handed out."""

from __future__ import annotations

from pathlib import Path

from rayapp.datastore.interfaces import Author
from tests.gateway.conftest import Served, write_image, write_label


def test_an_image_that_is_handed_out_as_next_is_made_ready(gateway: Served):
    handed_out = gateway.post("/activelearning/first", json={"client_id": "slicer"}).json()
    told = gateway.network.handed_out[-1]
    assert (told.key, told.path, told.model, told.client_id) == (handed_out["id"], None, None, "slicer")


def test_a_sessions_image_is_made_ready_where_its_clicks_go(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "mine.nii.gz")
    with file.open("rb") as body:
        made = gateway.put("/session/", files={"files": ("mine.nii.gz", body)}).json()
    told = gateway.network.handed_out[-1]
    answer = gateway.post(f"/infer/bright?session_id={made['session_id']}", data={"params": "{}"})
    assert answer.status_code == 200
    assert (told.key, told.path) == (gateway.network.calls[-1].key, gateway.network.calls[-1].path)


def test_an_image_that_turns_out_to_be_unreadable_is_handed_out_no_more(gateway: Served):
    (gateway.settings.studies / "a_broken.nii.gz").write_bytes(b"no image")
    gateway.store.refresh()
    assert gateway.post("/activelearning/first", json={}).json()["id"] == "a_broken"
    refused = gateway.post("/infer/bright?image=a_broken", data={"params": "{}"})
    assert refused.status_code == 422
    assert gateway.post("/activelearning/first", json={}).json()["id"] != "a_broken"
    info = gateway.get("/datastore/image/info?image=a_broken").json()
    assert info["unreadable"]["why"] == refused.json()["detail"]


def test_when_no_image_is_left_nobody_is_told(gateway: Served):
    for image in gateway.store.image_ids():
        staged = write_label(gateway.store.stage(".nii.gz"))
        gateway.store.save_label(image, "final", staged, ".nii.gz", info={}, author=Author())
    before = len(gateway.network.handed_out)
    assert gateway.post("/activelearning/first", json={}).json() == {}
    assert len(gateway.network.handed_out) == before
