"""Another image under the name of one that had labels, scores, leases and clicks: none of them is taken for its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore import image_files, reconcile
from rayapp.datastore.image_files import fingerprint
from rayapp.datastore.interfaces import ClickEvent, ImageScore
from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import AUTHOR, Open, save
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import write_series
from tests.waiting import until

NAME = "ct_a.nii.gz"


def worked_on(store: LocalDatastore, studies: Path, image: str = "ct_a") -> Path:
    """An image with everything that one can have. Returns its uncertainty map."""
    save(store, image, body=b"label of the old")
    store.save_scores(
        [
            ImageScore(image_id=image, run="r", ts=1.0, values={"tta": 1.0}, feature=[1.0], info={"tta_slices": {}}),
            ImageScore(image_id="ct_b", run="r", ts=1.0, values={"tta": 0.5}),
        ]
    )
    store.update_image_info(image, {"site": "x"})
    store.append_events([ClickEvent(image_id=image, kind="click", payload={})])
    held = store.serve_next(image, "first", client_id=None, ts=1, holder="ann")
    assert held is not None
    map_ = studies / ".rayapp" / "uncertainty" / "tta" / f"{image}.nii.gz"
    map_.parent.mkdir(parents=True, exist_ok=True)
    map_.write_bytes(b"of the old")
    return map_


def is_unscored_and_free(store: LocalDatastore, image: str, map_: Path) -> bool:
    """Nothing that was computed of the old image's voxels, and no lease on it, is left."""
    info = store.image(image).info
    return (
        image in store.unscored("r", images="all")
        and not store.features([image])
        and store.ranked("tta", tag="other", limit=9).ids in (["ct_b"], [])
        and store.serve_next(image, "first", client_id=None, ts=1, holder="ben") is not None
        and "tta_slices" not in info
        and not map_.exists()
    )


@pytest.mark.parametrize("size", ["the same size", "another size"])
def test_an_image_replaced_in_place_keeps_its_labels_not_silently_and_nothing_computed(
    plain: LocalDatastore, studies: Path, size: str
) -> None:
    map_ = worked_on(plain, studies)
    old = (studies / NAME).read_bytes()
    (studies / NAME).write_bytes(old[::-1] if size == "the same size" else b"another patient")
    plain.refresh()
    assert is_unscored_and_free(plain, "ct_a", map_)
    assert plain.image("ct_a").info["image_replaced"]
    assert plain.image("ct_a").info["site"] == "x"
    label = plain.label("ct_a", "final")
    assert label.path.read_bytes() == b"label of the old"
    assert label.info["image_replaced"]
    assert "replaced after 1 of its labels" in plain.status()["problems"][NAME]
    save(plain, "ct_a", body=b"label of the new")
    assert "image_replaced" not in plain.label("ct_a", "final").info
    assert "problems" not in plain.status()
    assert len(plain.revisions("ct_a", "final")) == 2


@pytest.mark.parametrize("how", ["touched", "copied again", "restored"])
def test_a_file_that_is_written_again_with_the_same_content_is_the_same_image(
    plain: LocalDatastore, studies: Path, tmp_path: Path, how: str
) -> None:
    map_ = worked_on(plain, studies)
    if how == "touched":
        os.utime(studies / NAME)
    else:
        shutil.copyfile(studies / NAME, tmp_path / "copy")
        if how == "restored":
            (studies / NAME).unlink()
            plain.refresh()
            assert plain.image_ids() == ["ct_b", "mr_c"]
        shutil.copyfile(tmp_path / "copy", studies / NAME)
        os.utime(studies / NAME, (1, 1))
    plain.refresh()
    assert plain.label("ct_a", "final").path.read_bytes() == b"label of the old"
    assert plain.image("ct_a").info["site"] == "x"
    assert "image_replaced" not in plain.image("ct_a").info
    assert "problems" not in plain.status()
    assert len(plain.revisions("ct_a", "final")) == 1
    if how != "restored":
        assert map_.exists()
        assert plain.features(["ct_a"])
        assert plain.ranked("tta", tag="other", limit=9, holder="ann").ids == ["ct_a", "ct_b"]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("way", ["by another program", "over HTTP"])
def test_a_name_used_again_for_another_image_inherits_nothing(
    studies: Path, open_store: Open, reopened: bool, way: str
) -> None:
    store = open_store(studies)
    map_ = worked_on(store, studies)
    (studies / NAME).unlink()
    store.refresh()
    if reopened:
        store.close()
        store = open_store(studies)
    if way == "over HTTP":
        staged = store.stage(".nii.gz")
        staged.write_bytes(b"another patient")
        store.add_image("ct_a", staged, ".nii.gz", info={}, author=AUTHOR)
    else:
        (studies / NAME).write_bytes(b"another patient")
    for _ in range(2):
        store.refresh()
        assert store.labels("ct_a") == {}
        assert store.revisions("ct_a", "final") == []
        assert not store.events("ct_a")
        assert "site" not in store.image("ct_a").info
        assert list((studies / "labels" / "final").iterdir()) == []
    assert is_unscored_and_free(store, "ct_a", map_)
    kept = [path.read_bytes() for path in (studies / ".rayapp" / "revisions").glob("*/*")]
    assert kept == [b"label of the old"], "the removed image's label is kept, under a name that no image has"
    save(store, "ct_a", body=b"label of the new")
    assert [each.path.read_bytes() for each in store.revisions("ct_a", "final")] == [b"label of the new"]


def test_a_removed_images_map_is_not_that_of_the_next_one_of_its_name(plain: LocalDatastore, studies: Path) -> None:
    map_ = worked_on(plain, studies)
    plain.remove_image("ct_a")
    assert not map_.exists()
    map_.write_bytes(b"of a scoring that ended late")
    (studies / NAME).write_bytes(b"another patient")
    plain.refresh()
    assert is_unscored_and_free(plain, "ct_a", map_)


def test_a_label_that_another_program_put_there_for_the_new_image_is_the_new_images(
    plain: LocalDatastore, studies: Path
) -> None:
    worked_on(plain, studies)
    (studies / NAME).unlink()
    plain.refresh()
    (studies / NAME).write_bytes(b"another patient")
    (studies / "labels" / "final" / NAME).write_bytes(b"label of the new, by them")
    plain.refresh()
    assert plain.label("ct_a", "final").path.read_bytes() == b"label of the new, by them"
    assert len(plain.revisions("ct_a", "final")) == 1


def test_a_crash_while_a_name_is_used_again_leaves_the_same_decision_to_the_next_start(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(studies)
    worked_on(store, studies)
    (studies / NAME).unlink()
    store.refresh()
    (studies / NAME).write_bytes(b"another patient")
    delete = store._opened.reconciler._label_scan.delete_published

    def fails(*given: Any) -> None:
        delete(*given)
        raise OSError("the power fails here")

    monkeypatch.setattr(store._opened.reconciler._label_scan, "delete_published", fails)
    with pytest.raises(Exception, match="could not be written"):
        store.refresh()
    store.close()
    store = open_store(studies)
    assert store.labels("ct_a") == {}
    assert store.revisions("ct_a", "final") == []


def test_a_running_server_notices_a_replaced_image(studies: Path, open_store: Open) -> None:
    store = open_store(studies, watch=True)
    map_ = worked_on(store, studies)
    until(lambda: not store._opened.reconciler.concerns([studies / NAME]))
    (studies / NAME).write_bytes(b"another patient")
    until(lambda: store.image("ct_a").info.get("image_replaced"))
    assert is_unscored_and_free(store, "ct_a", map_)


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (lambda folder: (folder / "readme").write_text("x") and (folder / "readme").unlink(), False),
        (lambda folder: (folder / "slice_0000.dcm").unlink(), True),
    ],
    ids=["touched", "a slice is gone"],
)
def test_a_dicom_folder_with_other_files_is_another_image(
    studies: Path, open_store: Open, change: Callable[[Path], Any], is_another: bool
) -> None:
    files = write_series(studies / "dicom", voxels(), AFFINES["straight"], series="1.2.3")
    files[0].rename(studies / "dicom" / "slice_0000.dcm")
    store = open_store(studies)
    map_ = worked_on(store, studies, "dicom")
    change(studies / "dicom")
    store.refresh()
    assert ("image_replaced" in store.image("dicom").info) == is_another
    assert map_.exists() != is_another


def test_an_index_of_an_earlier_version_takes_the_files_as_they_are(studies: Path, open_store: Open) -> None:
    store = open_store(studies)
    worked_on(store, studies)
    store._commit.do(lambda db: db.execute("DELETE FROM image_file").rowcount)
    os.utime(studies / NAME, (1, 1))
    store.refresh()
    assert "image_replaced" not in store.image("ct_a").info
    (studies / NAME).write_bytes(b"another patient")
    store.refresh()
    assert "image_replaced" in store.image("ct_a").info


def test_very_many_new_files_are_read_in_parts(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_NEW", 2)
    store = open_store(studies)
    assert not store._opened.scan()
    with store._index.reader() as db:
        assert db.execute("SELECT count(*) FROM image_file").fetchone() == (3,)


def test_looks_at_files_that_take_long_are_made_in_part_of_the_scans(
    plain: LocalDatastore, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "LONG_S", -1.0)
    monkeypatch.setattr(reconcile, "DUTY", 10**9)
    plain.refresh()
    (studies / NAME).write_bytes(b"another patient")
    plain.refresh()
    assert "image_replaced" not in plain.image("ct_a").info
    plain._opened.reconciler._next_look = 0.0
    plain.refresh()
    assert "image_replaced" in plain.image("ct_a").info


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_fingerprint_reads_little_and_tells_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    content = bytes(range(256)) * 4096
    path.write_bytes(content)
    read: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read.append(size) or real(file, size, place))
    first = fingerprint(path)
    assert sum(read) <= image_files.SAMPLES * image_files.BLOCK
    path.write_bytes(content[:-4] + b"size")
    second = fingerprint(path)
    assert first is not None
    assert second is not None
    assert first.digest != second.digest
    assert fingerprint(tmp_path / "none") is None
    os.mkfifo(tmp_path / "pipe.nii")
    assert fingerprint(tmp_path / "pipe.nii") is None
