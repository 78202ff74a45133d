"""The answers that every datastore gives; the main calls also through the actor."""

from __future__ import annotations

import hashlib
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore.interfaces import ClickEvent
from rayapp.errors import BadRequest, Conflict, NotFound
from tests.datastore.saves import AUTHOR, counts, save


def test_a_folder_of_images_is_listed_in_order_with_their_paths(store: Any, studies: Path) -> None:
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.image_ids(after="ct_a", limit=1) == ["ct_b"]
    image = store.image("mr_c")
    assert (image.path, image.ext) == (studies / "mr_c.nrrd", ".nrrd")
    assert image.info["name"] == "mr_c.nrrd"
    assert int(image.path.stat().st_mtime) <= image.info["ts"] <= time.time()


def test_a_saved_label_is_published_whole_with_its_info_and_author(store: Any, studies: Path) -> None:
    before = int(time.time())
    record = save(store, body=b"one", label_info=[{"name": "liver", "idx": 1}], ts=-1)
    assert record.path == studies / "labels" / "final" / "ct_a.nii.gz"
    assert record.path.read_bytes() == b"one"
    assert record.revision == hashlib.sha256(b"one").hexdigest()
    assert record.info["label_info"] == [{"name": "liver", "idx": 1}]
    assert (record.info["name"], record.info["user"], record.info["client_id"]) == ("ct_a.nii.gz", "ann", "slicer-1")
    assert before <= record.info["ts"] <= time.time()
    assert store.label("ct_a", "final") == record
    assert counts(store) == {"total": 3, "completed": 1, "label_tags": {"final": 1}}


def test_saving_again_replaces_the_info_and_keeps_the_earlier_revision(store: Any) -> None:
    save(store, body=b"one", comment="first")
    save(store, body=b"two", ext=".nrrd")
    assert "comment" not in store.label("ct_a", "final").info
    first, second = store.revisions("ct_a", "final")
    assert (first.number, first.parent, second.number, second.parent) == (1, None, 2, 1)
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"one", b"two")
    assert (first.user, first.client_id, first.info["comment"]) == ("ann", "slicer-1", "first")


def test_a_label_with_another_extension_takes_the_old_file_away(plain: Any, studies: Path) -> None:
    save(plain, ext=".nii.gz")
    save(plain, ext=".seg.nrrd")
    assert [p.name for p in (studies / "labels" / "final").iterdir()] == ["ct_a.seg.nrrd"]


def test_editing_a_published_file_in_place_cannot_reach_its_revision(plain: Any) -> None:
    record = save(plain, body=b"one")
    with record.path.open("r+b") as file:
        file.write(b"XXX")
    assert plain.revisions("ct_a", "final")[0].path.read_bytes() == b"one"


def test_labels_come_by_tag_in_the_order_of_their_first_save(plain: Any) -> None:
    for tag in ("original", "final", "version_1", "original"):
        save(plain, tag=tag)
    assert list(plain.labels("ct_a")) == ["original", "final", "version_1"]
    assert plain.labels("ct_b") == {}


def test_infos_merge_key_by_key(plain: Any) -> None:
    save(plain, model="m")
    assert plain.update_label_info("ct_a", "final", {"status": "approved"})["model"] == "m"
    assert plain.label("ct_a", "final").info["status"] == "approved"
    plain.update_image_info("ct_a", {"a": 1})
    info = plain.update_image_info("ct_a", {"b": [2]})
    assert (info["a"], info["b"], info["name"]) == (1, [2], "ct_a.nii.gz")


def test_an_info_that_json_cannot_hold_is_refused_and_changes_nothing(plain: Any) -> None:
    before = plain.image("ct_a").info
    with pytest.raises(BadRequest, match="without NaN or infinity"):
        plain.update_image_info("ct_a", {"score": float("nan")})
    assert plain.image("ct_a").info == before


def test_an_uploaded_image_joins_the_others_and_its_id_is_taken(store: Any, studies: Path) -> None:
    def upload() -> Any:
        staged = store.stage(".nii")
        staged.write_bytes(b"new")
        return store.add_image("new", staged, ".nii", info={"site": "x"}, author=AUTHOR)

    image = upload()
    assert image.path.read_bytes() == b"new"
    assert (image.info["site"], image.info["user"], image.info["name"]) == ("x", "ann", "new.nii")
    assert "new" in store.image_ids()
    with pytest.raises(Conflict, match="already"):
        upload()


def test_removing_an_image_takes_its_labels_and_clicks_along_but_no_revision(store: Any, studies: Path) -> None:
    record = save(store)
    store.append_events([ClickEvent(image_id="ct_a", kind="click", payload={})])
    store.remove_image("ct_a")
    assert store.image_ids() == ["ct_b", "mr_c"]
    assert not record.path.exists()
    assert not (studies / "ct_a.nii.gz").exists()
    assert store.events("ct_a") == []
    assert counts(store) == {"total": 2, "completed": 0, "label_tags": {}}
    assert store.revisions("ct_a", "final")[0].path.exists()


def test_removing_a_label_says_whether_there_was_one(plain: Any) -> None:
    record = save(plain)
    assert plain.remove_label("ct_a", "final") is True
    assert plain.remove_label("ct_a", "final") is False
    assert not record.path.exists()
    assert plain.unlabeled() == ["ct_a"]
    save(plain)
    assert [r.number for r in plain.revisions("ct_a", "final")] == [1, 2]


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.image("nope"),
        lambda s: s.labels("nope"),
        lambda s: s.label("ct_a", "final"),
        lambda s: s.remove_image("nope"),
        lambda s: s.update_image_info("nope", {}),
        lambda s: s.update_label_info("ct_a", "final", {}),
        lambda s: s.serve_next("nope", "first", client_id=None, ts=1),
        lambda s: s.append_events([ClickEvent(image_id="nope", kind="click", payload={})]),
        lambda s: save(s, image_id="nope"),
        lambda s: s.archive(Path("nowhere.zip")),
    ],
)
def test_what_is_not_there_is_not_found(plain: Any, call: Any) -> None:
    with pytest.raises(NotFound):
        call(plain)


def test_errors_of_the_actor_arrive_as_themselves(store: Any) -> None:
    with pytest.raises(NotFound, match="no image 'nope'"):
        store.image("nope")


@pytest.mark.parametrize("tag", ["../up", "a/b", "", ".hidden", "con"])
def test_a_tag_can_never_name_a_path(plain: Any, tag: str) -> None:
    with pytest.raises(BadRequest):
        save(plain, tag=tag)


def test_only_files_that_were_staged_here_are_taken_over(plain: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    other.write_bytes(b"x")
    with pytest.raises(BadRequest, match="staged"):
        plain.save_label("ct_a", "final", other, ".nii.gz", info={}, author=AUTHOR)
    with pytest.raises(BadRequest, match="extension"):
        plain.stage("/../../x")


def test_a_save_made_again_after_a_lost_answer_is_one_save(store: Any) -> None:
    staged = store.stage(".nii.gz")
    staged.write_bytes(b"once")
    first = store.save_label("ct_a", "final", staged, ".nii.gz", info={"k": 1}, author=AUTHOR)
    again = store.save_label("ct_a", "final", staged, ".nii.gz", info={"k": 1}, author=AUTHOR)
    assert again == first
    staged.write_bytes(b"once")  # as when the process died between its commit and the removal of the staged file
    assert store.save_label("ct_a", "final", staged, ".nii.gz", info={"k": 1}, author=AUTHOR) == first
    assert not staged.exists()
    assert len(store.revisions("ct_a", "final")) == 1


def test_an_upload_made_again_after_a_lost_answer_is_one_upload(plain: Any) -> None:
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"once")
    first = plain.add_image("new", staged, ".nii.gz", info={}, author=AUTHOR)
    assert plain.add_image("new", staged, ".nii.gz", info={}, author=AUTHOR) == first


def test_the_next_image_in_order_is_the_first_or_last_without_a_label_under_the_tag(plain: Any) -> None:
    save(plain, "ct_a")
    save(plain, "mr_c", tag="original")
    assert plain.unlabeled(order="first") == ["ct_b"]
    assert plain.unlabeled(order="last") == ["mr_c"]
    assert plain.unlabeled(tag="original", limit=9) == ["ct_a", "ct_b"]


def test_serving_an_image_is_recorded_in_its_info(plain: Any) -> None:
    plain.serve_next("ct_a", "Random", client_id="c", ts=7)
    plain.serve_next("ct_a", "First", client_id=None, ts=8)
    assert plain.image("ct_a").info["strategy"] == {
        "Random": {"ts": 7, "client_id": "c"},
        "First": {"ts": 8, "client_id": None},
    }


def test_clicks_come_back_in_order_by_user_and_from_behind_a_number(store: Any) -> None:
    def event(user: str, x: int) -> ClickEvent:
        payload = {"spleen": [[x, 2, 3]]}
        return ClickEvent(image_id="ct_a", kind="click", payload=payload, user=user, model="deepedit", ts=float(x))

    one, two = store.append_events([event("ann", 1), event("bob", 2)])
    (three,) = store.append_events([event("ann", 3)])
    assert one < two < three
    assert [e.payload["spleen"][0][0] for e in store.events("ct_a")] == [1, 2, 3]
    assert [e.seq for e in store.events("ct_a", user="ann", after=one)] == [three]
    assert store.append_events([event("ann", 1)]) == [one], "sent twice, it is logged once"
    assert store.events("ct_b") == []
    assert store.event(two) == store.events("ct_a")[1]
    with pytest.raises(NotFound):
        store.event(three + 1)


def test_the_datalist_pairs_images_with_their_final_labels(plain: Any, studies: Path) -> None:
    save(plain, "mr_c", ext=".nrrd")
    save(plain, "ct_a", tag="original")
    assert plain.datalist() == [{"image": str(studies / "mr_c.nrrd"), "label": str(studies / "labels/final/mr_c.nrrd")}]
    (kept,) = plain.datalist(immutable=True)
    body = Path(kept["label"]).read_bytes()
    save(plain, "mr_c", body=b"another", ext=".nrrd")
    plain.remove_label("mr_c", "final")
    assert Path(kept["label"]).read_bytes() == body


def test_a_training_learns_what_was_saved_with_a_label(store: Any) -> None:
    save(store, "ct_a", looked_for=["liver"])
    (pair,) = store.datalist(immutable=True)
    assert pair["info"]["looked_for"] == ["liver"]
    assert pair["patient"] is None


def test_a_training_learns_which_patient_an_image_is_of(store: Any) -> None:
    store.update_image_info("ct_a", {"PatientID": "P-7"})
    save(store, "ct_a")
    (pair,) = store.datalist(immutable=True)
    assert pair["patient"] == "P-7"


def test_the_archive_holds_the_final_pairs_and_the_document(store: Any, tmp_path: Path) -> None:
    for image_id in ("ct_a", "ct_b", "mr_c"):
        save(store, image_id, body=image_id.encode())
    target = tmp_path / "dataset.zip"
    assert store.archive(target, limit=2) == 2
    assert store.archive(target, limit=99) == 3
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            *("image/ct_a.nii.gz", "image/ct_b.nii.gz", "image/mr_c.nrrd"),
            *("label/ct_a.nii.gz", "label/ct_b.nii.gz", "label/mr_c.nii.gz", "metadata.json"),
        ]
        assert archive.read("label/mr_c.nii.gz") == b"mr_c"
        assert archive.getinfo("image/ct_a.nii.gz").compress_type == zipfile.ZIP_STORED


def test_a_second_opener_is_told_that_the_folder_is_taken(plain: Any, studies: Path, open_store: Any) -> None:
    with pytest.raises(Conflict, match="another process"):
        open_store(studies)
    plain.close()
    assert open_store(studies).status()["total"] == 3


def test_everything_is_there_after_reopening(plain: Any, studies: Path, open_store: Any) -> None:
    save(plain, model="m")
    plain.update_image_info("ct_b", {"dice": 0.5})
    plain.append_events([ClickEvent(image_id="ct_a", kind="click", payload={"x": [1]})])
    record, image, events, document = plain.label("ct_a", "final"), plain.image("ct_b"), plain.events("ct_a"), None
    document = plain.document()
    plain.close()
    again = open_store(studies)
    assert again.label("ct_a", "final") == record
    assert again.image("ct_b") == image
    assert again.events("ct_a") == events
    assert again.document() == document
    assert len(again.revisions("ct_a", "final")) == 1


def test_a_closed_store_refuses_to_save(plain: Any) -> None:
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"x")
    plain.close()
    with pytest.raises(Conflict, match="closed"):
        plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR)


def test_a_new_image_under_the_name_of_a_removed_one_has_none_of_its_history(plain):
    def bodies() -> list[bytes]:
        return [revision.path.read_bytes() for revision in plain.revisions("ct_a", "final")]

    for body in (b"first patient", b"second patient"):
        save(plain, body=body)
        assert bodies() == [body]
        plain.remove_image("ct_a")
        assert bodies() == [body], "kept for people"
        staged = plain.stage(".nii.gz")
        staged.write_bytes(b"voxels")
        plain.add_image("ct_a", staged, ".nii.gz", info={}, author=AUTHOR)
        assert bodies() == []
