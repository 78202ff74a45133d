"""`datastore_v2.json`: what MONAI Label reads of ours, and what we read of its."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rayapp.datastore import document
from rayapp.files import durable
from tests.datastore.saves import Open, save
from tests.waiting import until


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "DELAY_S", 0.05)


class FakeClock:
    """The clock, and the condition that the writer waits for: only waiting moves the clock on."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return sum(self.waits)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def written(studies: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((studies / "datastore_v2.json").read_text())
    return loaded


def test_the_document_has_the_layout_of_monai_label(plain: Any, studies: Path) -> None:
    save(plain, "ct_a", tag="version_1", body=b"x", model='ünï"code\n')
    save(plain, "ct_a", body=b"x")
    plain.close()
    found = written(studies)
    assert {key: value for key, value in found.items() if key != "objects"} == {
        "name": "new-dataset",
        "description": "New Dataset",
        "images_dir": ".",
        "labels_dir": "labels",
    }
    assert list(found["objects"]) == ["ct_a", "ct_b", "mr_c"]
    image = found["objects"]["ct_a"]
    assert image["image"]["ext"] == ".nii.gz"
    assert image["image"]["info"]["name"] == "ct_a.nii.gz"
    assert list(image["labels"]) == ["version_1", "final"]
    assert image["labels"]["version_1"]["info"]["model"] == 'ünï"code\n'
    assert isinstance(image["labels"]["final"]["info"]["ts"], int)
    assert found["objects"]["mr_c"]["labels"] == {}


def test_the_document_follows_a_change_soon(plain: Any, studies: Path) -> None:
    until((studies / "datastore_v2.json").exists)
    save(plain, model="m")
    until(lambda: written(studies)["objects"]["ct_a"]["labels"].get("final", {}).get("info", {}).get("model") == "m")
    assert written(studies) == plain.document()


def test_only_what_was_really_edited_from_outside_is_taken_over(plain: Any, studies: Path) -> None:
    save(plain, model="m")
    until(lambda: (studies / "datastore_v2.json").exists() and written(studies) == plain.document())
    stale = written(studies)
    save(plain, "ct_b", model="newer")
    plain.update_image_info("ct_a", {"dice": 0.7})
    # A program that had read the document before now writes it back with an edit of its own.
    stale["objects"]["ct_a"]["labels"]["final"]["info"]["status"] = "approved"
    stale["objects"]["mr_c"]["image"]["info"]["site"] = "x"
    stale["name"] = "renamed"
    (studies / "datastore_v2.json").write_text(json.dumps(stale))
    plain.refresh()
    assert plain.label("ct_a", "final").info["status"] == "approved"
    assert plain.image("mr_c").info["site"] == "x"
    assert plain.image("ct_a").info["dice"] == 0.7
    assert plain.label("ct_b", "final").info["model"] == "newer"
    assert plain.document()["name"] == "renamed"
    until(lambda: written(studies) == plain.document())


def test_new_entries_of_a_foreign_document_name_new_files(plain: Any, studies: Path) -> None:
    until((studies / "datastore_v2.json").exists)
    theirs = written(studies)
    theirs["objects"]["ct_a"]["labels"]["final"] = {"ext": ".seg.nrrd", "info": {"user": "zoe"}}
    theirs["objects"]["ct_d"] = {"image": {"ext": ".nii", "info": {"site": "y"}}, "labels": {}}
    (studies / "labels" / "final" / "ct_a.seg.nrrd").write_bytes(b"x")
    (studies / "ct_d.nii").write_bytes(b"x")
    (studies / "datastore_v2.json").write_text(json.dumps(theirs))
    plain.refresh()
    assert plain.label("ct_a", "final").info["user"] == "zoe"
    assert plain.image("ct_d").info["site"] == "y"


def test_our_own_older_document_never_overrides_newer_infos(studies: Path, open_store: Open) -> None:
    store = open_store(studies)
    store.update_image_info("ct_a", {"dice": 0.1})
    store.close()
    old = (studies / "datastore_v2.json").read_bytes()
    store = open_store(studies)
    store.update_image_info("ct_a", {"dice": 0.2})
    store.close()
    # As if the crash had come between remembering the new document and publishing it.
    (studies / "datastore_v2.json").write_bytes(old)
    assert open_store(studies).image("ct_a").info["dice"] == 0.2


def test_a_document_broken_while_the_store_runs_is_kept_aside_and_written_again(plain: Any, studies: Path) -> None:
    path = studies / "datastore_v2.json"
    until(path.exists)
    path.write_text("{")
    os.utime(path, (0, 0))  # nobody is writing it at this moment
    plain.refresh()
    assert len(list(studies.glob("datastore_v2.json.broken-*"))) == 1
    until(lambda: path.exists() and written(studies) == plain.document())


@pytest.mark.parametrize("half", ["", "{"])
def test_a_document_that_monai_label_is_writing_for_long_is_not_taken_for_a_broken_one(
    studies: Path, open_store: Open, half: str
) -> None:
    store, path = open_store(studies), studies / "datastore_v2.json"
    store._document.close()
    store._document.flush()
    theirs = written(studies)
    theirs["objects"]["ct_a"]["image"]["info"]["theirs"] = 1
    store._document._advisory.timeout = 0
    with FileLock(studies / ".lock"):
        path.write_text(half)
        os.utime(path, (0, 0))
        store._document.import_edits()
        assert path.read_text() == half
        path.write_text(json.dumps(theirs))
    store._document.import_edits()
    assert store.image("ct_a").info["theirs"] == 1
    assert not list(studies.glob("datastore_v2.json.broken-*"))


def test_a_deleted_document_comes_back_with_the_next_change(plain: Any, studies: Path) -> None:
    path = studies / "datastore_v2.json"
    until(path.exists)
    path.unlink()
    save(plain)
    until(lambda: path.exists() and written(studies) == plain.document())


def test_the_document_and_the_copy_that_edits_are_compared_with_survive_power_loss(
    plain: Any, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: (studies / document.NAME).exists())
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync", synced.append)
    plain._document.flush()
    assert {studies, studies / ".rayapp"} <= {*synced}


def test_the_document_of_a_large_store_is_not_written_again_before_its_share_of_time_is_due(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plain._document
    file.close()
    clock = FakeClock()
    file._closed, file._dirty, file._touched = False, True, 0.0
    with monkeypatch.context() as patch:
        patch.setattr(document, "time", clock)
        patch.setattr(file, "_wake", clock)
        assert file._due(0.0, 1000.0)
    assert clock.waits == [1000.0]


@pytest.mark.parametrize("changed", ["ct_a", "ct_b"], ids=["the same image", "another image"])
@pytest.mark.parametrize("versions", [1, 20], ids=["the last but one", "long replaced"])
def test_an_edit_of_an_older_document_is_imported_and_turns_nothing_back(
    plain: Any, studies: Path, changed: str, versions: int
) -> None:
    """MONAI Label keeps the document in memory and writes all of it."""
    plain.update_image_info(changed, {"text": "first"})
    plain._document.flush()
    theirs = written(studies)
    for number in range(versions):
        plain.update_image_info(changed, {"text": f"{number}"})
        plain._document.flush()
    theirs["objects"]["ct_a"]["image"]["info"]["theirs"] = 1
    (studies / "datastore_v2.json").write_text(json.dumps(theirs))
    plain.refresh()
    assert plain.image("ct_a").info["theirs"] == 1
    assert plain.image(changed).info["text"] == f"{versions - 1}"


def test_an_edit_of_the_same_length_right_behind_our_rename_is_taken_over(
    plain: Any, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.update_image_info("ct_a", {"number": 1})
    real = document.replace

    def replace(staged: Path, path: Path) -> None:
        real(staged, path)
        if path.name == document.NAME:
            path.write_text(path.read_text().replace('"number":1', '"number":2').replace('"number": 1', '"number": 2'))

    monkeypatch.setattr(document, "replace", replace)
    plain._document.flush()
    monkeypatch.undo()
    plain.refresh()
    assert plain.image("ct_a").info["number"] == 2


def test_of_large_documents_few_earlier_ones_are_kept(
    plain: Any, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "BASE_BYTES", 1)
    for number in range(9):
        plain.update_image_info("ct_b", {"text": f"{number}"})
        plain._document.flush()
    kept = [path.read_text() for path in (studies / ".rayapp").glob(f"{document.NAME}.*")]
    assert len(kept) == document.BASES
    assert any('"text": "8"' in text for text in kept)


def test_an_edit_while_the_document_is_made_is_imported_before_it_is_replaced(
    plain: Any, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain._document.flush()
    write = plain._document._write

    def edited(file: Any) -> str:
        monkeypatch.setattr(plain._document, "_write", write)
        theirs = written(studies)
        theirs["objects"]["ct_a"]["image"]["info"]["theirs"] = 1
        (studies / "datastore_v2.json").write_text(json.dumps(theirs))
        return str(write(file))

    monkeypatch.setattr(plain._document, "_write", edited)
    plain.update_image_info("ct_b", {"ours": 2})
    plain._document.flush()
    assert plain.image("ct_a").info["theirs"] == 1
    assert written(studies)["objects"]["ct_b"]["image"]["info"]["ours"] == 2
