"""Files of images that are added, removed and exchanged, where a crash, an error of the disk or another program comes
in between."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayapp.datastore.interfaces import ImageScore
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Busy
from rayapp.upkeep.garbage import AGE_S, collect
from tests.datastore.saves import AUTHOR, Open, save


def add(store: LocalDatastore, image: str, voxels: bytes) -> None:
    staged = store.stage(".nii.gz")
    staged.write_bytes(voxels)
    store.add_image(image, staged, ".nii.gz", info={}, author=AUTHOR)


def refuses(*_: object) -> None:
    """A call of a disk that fails."""
    raise OSError(5, "Input/output error")


@pytest.fixture
def crashed(plain: LocalDatastore, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as a crash leaves it after the removal of `ct_a` was committed, and before its file was deleted."""
    left = tmp_path / "left"

    def crash(path: Path) -> Path:
        if not left.exists():
            shutil.copytree(studies, left)
        return discard(path)

    discard = plain._files.discard
    monkeypatch.setattr(plain._files, "discard", crash)
    plain.remove_image("ct_a")
    return left


def test_a_removal_that_a_crash_cut_short_is_completed(crashed: Path, open_store: Open) -> None:
    assert (crashed / "ct_a.nii.gz").exists()
    assert "ct_a" not in open_store(crashed).image_ids()
    assert not (crashed / "ct_a.nii.gz").exists()


def test_a_removal_that_a_crash_cut_short_spares_an_image_that_was_put_there_since(
    crashed: Path, open_store: Open
) -> None:
    (crashed / "ct_a.nii.gz").write_bytes(b"another patient, copied while the server was down")
    store = open_store(crashed)
    assert store.image("ct_a").path.read_bytes() == b"another patient, copied while the server was down"
    assert "image_replaced" not in store.image("ct_a").info
    store.remove_image("ct_a")
    assert not (crashed / "ct_a.nii.gz").exists()


def test_an_image_that_another_program_has_just_replaced_is_not_removed_unseen(
    plain: LocalDatastore, studies: Path
) -> None:
    (studies / "ct_a.nii.gz").write_bytes(b"another patient")
    with pytest.raises(Busy, match="has just written"):
        plain.remove_image("ct_a")
    assert (studies / "ct_a.nii.gz").read_bytes() == b"another patient"
    plain.refresh()
    plain.remove_image("ct_a")
    assert not (studies / "ct_a.nii.gz").exists()


def test_labels_that_could_not_be_deleted_are_not_those_of_the_next_image_of_the_name(
    plain: LocalDatastore, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(plain, "ct_a", body=b"label of the old patient")
    discard = plain._files.discard

    def discarded(path: Path) -> Path:
        return refuses() if path.parent.name == "final" else discard(path)  # type: ignore[func-returns-value,return-value]

    monkeypatch.setattr(plain._files, "discard", discarded)
    plain.remove_image("ct_a")
    monkeypatch.undo()
    add(plain, "ct_a", b"another patient")
    plain.refresh()
    assert plain.labels("ct_a") == {}
    assert plain.revisions("ct_a", "final") == []
    assert not (studies / "labels" / "final" / "ct_a.nii.gz").exists()


def days_later(folder: Path) -> None:
    """Let the files in staging be as old as after some days."""
    for path in (folder / ".rayapp" / "staging").iterdir():
        os.utime(path, (time.time() - 3 * AGE_S,) * 2)


@pytest.mark.parametrize("meanwhile", [lambda *_: None, collect], ids=["nothing", "rayapp gc"])
def test_an_image_that_could_not_get_its_name_is_there_after_a_start_days_later(
    plain: LocalDatastore,
    studies: Path,
    tmp_path: Path,
    open_store: Open,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Path, Path], object],
) -> None:
    monkeypatch.setattr(plain._opened.repair, "place_image", refuses)
    add(plain, "new", b"voxels")
    assert "new" in plain.image_ids()
    left = tmp_path / "left"
    shutil.copytree(studies, left)
    monkeypatch.undo()
    days_later(left)
    meanwhile(left, tmp_path / "workspace")
    assert open_store(left).image("new").path.read_bytes() == b"voxels"
    assert list((left / ".rayapp" / "staging").iterdir()) == []


def test_leftovers_of_uploads_are_deleted_after_a_day(plain: LocalDatastore, studies: Path, open_store: Open) -> None:
    for _ in range(2):
        plain.stage(".nii.gz").write_bytes(b"broken off")
    plain.close()
    days_later(studies)
    fresh = studies / ".rayapp" / "staging" / "fresh"
    fresh.write_bytes(b"just now")
    open_store(studies)
    assert list((studies / ".rayapp" / "staging").iterdir()) == [fresh]


def test_a_label_that_another_program_has_just_put_there_goes_with_its_image(
    plain: LocalDatastore, studies: Path
) -> None:
    label = studies / "labels" / "drawn" / "ct_a.nii.gz"
    label.parent.mkdir()
    label.write_bytes(b"of the old patient")
    plain.remove_image("ct_a")
    assert [each.path.read_bytes() for each in plain.revisions("ct_a", "drawn")] == [b"of the old patient"]
    add(plain, "ct_a", b"another patient")
    plain.refresh()
    assert plain.labels("ct_a") == {}
    assert not label.exists()


def test_an_added_image_that_is_replaced_before_any_scan_is_noticed(plain: LocalDatastore, studies: Path) -> None:
    add(plain, "new", b"voxels")
    plain.save_scores([ImageScore(image_id="new", run="r", ts=1.0, values={"u": 1.0})])
    (studies / "new.nii.gz").write_bytes(b"others")
    plain.refresh()
    assert "new" in plain.unscored("r")


def test_an_edit_of_the_document_is_not_taken_over_by_the_next_image_of_a_name(
    plain: LocalDatastore, studies: Path
) -> None:
    plain._document.flush()
    document = json.loads((studies / "datastore_v2.json").read_bytes())
    document["objects"]["ct_a"]["image"]["info"]["mark"] = "of the old patient"
    (studies / "datastore_v2.json").write_text(json.dumps(document))
    plain.remove_image("ct_a")
    add(plain, "ct_a", b"another patient")
    plain.refresh()
    assert "mark" not in plain.image("ct_a").info
