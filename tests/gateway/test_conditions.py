"""A label is saved or removed only if nobody else saved since, where the client says from which revision it started."""

from __future__ import annotations

import pytest
import requests

from tests.gateway.conftest import Served, write_label

LABEL = "/datastore/label?image=ct_b&tag=draft"


def put(server: Served, tmp_path, **headers: str) -> requests.Response:
    write_label(tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        return server.put(LABEL, files={"label": file}, headers=headers)


@pytest.fixture
def server(gateway: Served):
    yield gateway
    gateway.store.remove_label("ct_b", "draft")


def test_the_answer_and_the_download_name_the_revision(server: Served, tmp_path):
    tag = put(server, tmp_path).headers["ETag"]
    for answer in (
        server.get("/datastore/label?label=ct_b&tag=draft"),
        server.send("HEAD", "/datastore/label?image=ct_b&tag=draft"),
    ):
        assert answer.headers["ETag"] == tag
    assert tag == f'"{server.store.label("ct_b", "draft").number}"'


def test_a_save_from_the_newest_revision_is_taken_and_one_from_an_older_is_refused(server: Served, tmp_path):
    first = put(server, tmp_path).headers["ETag"]
    second = put(server, tmp_path, **{"If-Match": first})
    assert second.status_code == 200
    late = put(server, tmp_path, **{"If-Match": first})
    assert late.status_code == 409
    assert "was saved by admin at" in late.json()["detail"]
    assert server.store.label("ct_b", "draft").number == int(second.headers["ETag"].strip('"'))


def test_a_first_save_may_insist_on_being_the_first(server: Served, tmp_path):
    assert put(server, tmp_path, **{"If-None-Match": "*"}).status_code == 200
    assert put(server, tmp_path, **{"If-None-Match": "*"}).status_code == 409


def test_a_removal_of_an_older_revision_is_refused(server: Served, tmp_path):
    first = put(server, tmp_path).headers["ETag"]
    second = put(server, tmp_path).headers["ETag"]
    url = "/datastore/label?id=ct_b&tag=draft"
    assert server.send("DELETE", url, headers={"If-Match": first}).status_code == 409
    assert server.send("DELETE", url, headers={"If-Match": second}).status_code == 200
    assert server.send("DELETE", url).status_code == 200


@pytest.mark.parametrize("condition", [True, False])
def test_a_removal_made_again_after_a_lost_answer_leaves_what_was_saved_meanwhile(
    server: Served, tmp_path, monkeypatch: pytest.MonkeyPatch, condition: bool
):
    first, remove = put(server, tmp_path).headers["ETag"], server.store.remove_label

    def made_again(*names, **given):
        assert remove(*names, **given)
        server.save("ct_b", tmp_path / "label.nii.gz", "draft")
        return remove(*names, **given)

    monkeypatch.setattr(server.store, "remove_label", made_again)
    headers = {"If-Match": first} if condition else {}
    answer = server.send("DELETE", "/datastore/label?id=ct_b&tag=draft", headers=headers)
    monkeypatch.undo()
    assert answer.status_code == 409
    assert server.store.label("ct_b", "draft").number == int(first.strip('"')) + 1


@pytest.mark.parametrize(
    "headers",
    [{"If-Match": "3"}, {"If-Match": "*"}, {"If-Match": 'W/"3"'}, {"If-None-Match": '"3"'}, {"If-Match": '"x"'}],
    ids=str,
)
def test_a_condition_of_another_form_is_refused_and_nothing_is_saved(server: Served, tmp_path, headers):
    assert put(server, tmp_path, **headers).status_code == 400
    assert server.send("HEAD", "/datastore/label?image=ct_b&tag=draft").status_code == 404
