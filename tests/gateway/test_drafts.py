"""Drafts of labels, as the viewer's panel keeps them, and the revisions of saved labels."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest

from rayapp.imaging import mask_codec
from rayapp.protocol import Role
from tests.gateway.conftest import AFFINE, SHAPE, Served, write_image

A, B = "a" * 16, "b" * 16
EMPTY = mask_codec.to_text(np.zeros(SHAPE, np.uint8))


def packed(value: int) -> str:
    labels = np.zeros(SHAPE, np.uint8)
    labels[value] = value
    return mask_codec.to_text(labels)


def begin(base: int = 0, **given: Any) -> dict[str, Any]:
    return {"kind": "begin", "base": base, "names": ["bright"], "labels": EMPTY, **given}


def edit(value: int, **about: Any) -> dict[str, Any]:
    return {"kind": "edit", "labels": packed(value), "about": about}


class Drafts:
    """The drafts of one image, each request with an id of its own."""

    def __init__(self, served: Served, image: str) -> None:
        self.served, self.image, self.count = served, image, 0

    def send(self, draft: str, *entries: dict[str, Any], **given: Any) -> int:
        numbered = []
        for entry in entries:
            self.count += 1
            numbered.append({"request": f"{self.count:08x}", **entry})
        body = {"image": self.image, "draft": draft, "entries": numbered}
        return self.served.post("/viewer/draft", json=body, **given).status_code

    def newest(self, **given: Any) -> dict[str, Any]:
        return self.served.get("/viewer/draft", params={"image": self.image}, **given).json()


@pytest.fixture
def drafts(gateway: Served) -> Drafts:
    name = f"draft_{len(list(gateway.settings.studies.glob('draft_*')))}"
    write_image(gateway.settings.studies / f"{name}.nii.gz")
    gateway.store.refresh()
    return Drafts(gateway, name)


def done(draft: dict[str, Any]) -> list[str]:
    return [one["labels"] for one in draft["done"]]


def test_a_draft_comes_back_as_it_was_left_with_what_can_be_undone_and_redone(drafts: Drafts):
    assert drafts.newest() is None
    assert drafts.send(A, begin(), edit(1), edit(2, what="stroke"), edit(3)) == 200
    assert drafts.send(A, {"kind": "undo"}, {"kind": "undo"}, {"kind": "redo"}) == 200
    draft = drafts.newest()
    assert (draft["draft"], draft["base"], draft["names"], draft["start"]) == (A, 0, ["bright"], EMPTY)
    assert done(draft) == [packed(1), packed(2)]
    assert draft["done"][1]["about"] == {"what": "stroke"}
    assert [one["labels"] for one in draft["undone"]] == [packed(3)]


def test_a_request_counts_once_however_often_it_is_sent(drafts: Drafts):
    drafts.send(A, begin(request="0" * 8), {**edit(1), "request": "1" * 8})
    drafts.send(A, {**edit(1), "request": "1" * 8})
    drafts.send(A, {"kind": "undo", "request": "2" * 8})
    drafts.send(A, {"kind": "undo", "request": "2" * 8})
    assert done(drafts.newest()) == []
    assert len(drafts.newest()["undone"]) == 1


def test_a_saved_draft_is_over_until_it_changes_again(drafts: Drafts):
    drafts.send(A, begin(), edit(1), {"kind": "saved", "base": 4})
    assert drafts.newest() is None
    drafts.send(A, edit(2))
    assert drafts.newest()["base"] == 4
    assert done(drafts.newest()) == [packed(1), packed(2)]


def test_another_tab_goes_on_from_a_draft_and_leaves_it_as_it_is(drafts: Drafts):
    drafts.send(A, begin(), edit(1))
    drafts.send(B, {"kind": "begin", "source": A}, edit(2), {"kind": "undo"})
    assert drafts.newest()["draft"] == B
    assert done(drafts.newest()) == [packed(1)]
    drafts.send(B, {"kind": "saved", "base": 1})
    assert drafts.newest() is None, "the first one lives on in the second"
    drafts.send(A, edit(3))
    assert done(drafts.newest()) == [packed(1), packed(3)]
    drafts.send(B, edit(2))
    assert done(drafts.newest()) == [packed(1), packed(2)]
    (first,) = [drafts.served.get("/viewer/draft", params={"image": drafts.image, "draft": A}).json()]
    assert done(first) == [packed(1), packed(3)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "edit"},
        {"kind": "edit", "labels": "AAAA"},
        {"kind": "edit", "labels": "not base64"},
        {"kind": "begin"},
        {"kind": "open"},
        {"kind": "undo", "request": "../x"},
    ],
)
def test_what_could_not_be_shown_again_is_refused(drafts: Drafts, wrong: dict[str, Any]):
    assert drafts.send(A, wrong) == 422
    assert drafts.newest() is None


def test_a_draft_belongs_to_who_made_it(keyed: Served, keys: dict[Role, str]):
    mine, theirs = ({"Authorization": f"Bearer {keys[role]}"} for role in (Role.ANNOTATOR, Role.REVIEWER))
    drafts = Drafts(keyed, "ct_a")
    assert drafts.send(A, begin(), edit(1), headers=mine) == 200
    assert drafts.newest(headers=mine)["draft"] == A
    assert drafts.newest(headers=theirs) is None


def test_earlier_revisions_are_listed_looked_at_and_restored(gateway: Served, tmp_path):
    labels = [np.full(SHAPE, value, np.uint8) for value in (1, 2)]
    for value, label in enumerate(labels, start=1):
        file = tmp_path / f"{value}.nii.gz"
        nibabel.Nifti1Image(label, AFFINE).to_filename(file)
        assert gateway.save("ct_a", file, "history", note=value).status_code == 200
    at = {"label": "ct_a", "tag": "history"}
    listed = gateway.get("/datastore/label/revisions", params=at).json()
    assert [(one["number"], one["user"], one["info"]["note"]) for one in listed] == [(1, "admin", 1), (2, "admin", 2)]
    first = gateway.get("/viewer/label", params={"image": "ct_a", "tag": "history", "revision": 1})
    np.testing.assert_array_equal(mask_codec.decode(first.content), labels[0])
    (tmp_path / "again.nii.gz").write_bytes(gateway.get("/datastore/label", params={**at, "revision": 1}).content)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "again.nii.gz").dataobj), labels[0])
    assert gateway.get("/datastore/label", params={**at, "revision": 9}).status_code == 404

    stale = {"If-Match": '"1"'}
    assert gateway.post("/datastore/label/restore", params={**at, "revision": 1}, headers=stale).status_code == 409
    restored = gateway.post("/datastore/label/restore", params={**at, "revision": 1}, headers={"If-Match": '"2"'})
    assert restored.status_code == 200
    assert restored.headers["ETag"] == '"3"'
    now = gateway.store.label("ct_a", "history")
    np.testing.assert_array_equal(np.asarray(nibabel.load(now.path).dataobj), labels[0])
    assert (now.info["note"], now.info["restored"]) == (1, 1)
    assert gateway.get("/datastore/label/revisions", params={"label": "none", "tag": "history"}).json() == []
