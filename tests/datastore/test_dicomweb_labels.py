"""Labels of studies in an archive: stored there as DICOM SEG, and read from there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pydicom
import pytest

from rayapp.datastore import dicomweb
from rayapp.imaging.dicom_seg import encode, read_masks, read_segmentation
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Segmentation
from tests.datastore.placed import CT, INFO, MR, NAMES, Placed, save_label, segmentations
from tests.front import BROKEN, CUT, DENIED, HELD, PLAIN, SLOW
from tests.imaging.grids import AFFINES, MAX, labels, voxels
from tests.imaging.series import edit, write_series
from tests.orthanc import needs_orthanc
from tests.real_data import real
from tests.waiting import until

pytestmark = needs_orthanc


def test_a_final_label_is_in_the_archive_on_the_right_voxels(placed: Placed) -> None:
    store = placed.open()
    save_label(store)
    until(lambda: not store.unsent())
    (dataset,) = segmentations(placed.archive)
    dataset.save_as(placed.folder / "found.dcm", enforce_file_format=True)
    found = read_segmentation(placed.folder / "found.dcm", read_grid(placed.folder / CT), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, labels())
    assert found.names == NAMES
    assert dataset.SeriesDescription == "final 1 deepedit"
    assert dataset.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    info = store.label(CT, "final").info
    assert info["SeriesInstanceUID"] == dataset.SeriesInstanceUID
    assert (info["Modality"], info["StudyInstanceUID"]) == ("SEG", f"{CT}.9")
    assert info["label_info"] == INFO["label_info"]
    assert store.image_ids() == [CT, MR]  # a segmentation is no image


def test_every_save_is_a_series_of_its_own_and_other_tags_stay_here(placed: Placed) -> None:
    store = placed.open()
    for number in range(2):
        save_label(store, array=np.roll(labels(), number, axis=1))
        until(lambda: not store.unsent())
    save_label(store, tag="draft")
    assert store.unsent() == []
    assert {dataset.SeriesDescription for dataset in segmentations(placed.archive)} == {
        "final 1 deepedit",
        "final 2 deepedit",
    }


@pytest.mark.parametrize("way", [BROKEN, SLOW, CUT, DENIED, "stopped"])
def test_a_label_saved_while_the_archive_is_away_is_kept_and_stored_when_it_is_back(placed: Placed, way: str) -> None:
    store = placed.open(dicomweb={"timeout": 2.0} if way == SLOW else {})
    store.image(CT)
    if way == "stopped":
        placed.archive.stop()
        placed.front.way = BROKEN
    else:
        placed.front.way = way
    before = len(placed.front.asked)
    save_label(store)
    np.testing.assert_array_equal(nibabel.load(store.label(CT, "final").path).get_fdata(), labels())
    until(lambda: len(placed.front.asked) > before)
    assert len(store.unsent()) == 1
    if way == "stopped":
        placed.archive.start()
    placed.front.way = PLAIN
    until(lambda: not store.unsent())
    assert len(segmentations(placed.archive)) == 1  # also when it had arrived, and only the answer was lost


def test_what_was_not_sent_is_sent_by_the_next_server_and_nothing_twice(placed: Placed) -> None:
    store = placed.open()
    store.image(CT)
    placed.front.way, placed.front.only = BROKEN, "POST"
    save_label(store)
    assert len(store.unsent()) == 1
    store.close()
    assert segmentations(placed.archive) == []
    placed.front.way = PLAIN
    store = placed.open()
    until(lambda: not store.unsent())
    store.close()
    store = placed.open()
    assert store.unsent() == []
    assert len(segmentations(placed.archive)) == 1


def test_nothing_here_is_an_answer_that_the_archive_gets(placed: Placed) -> None:
    store = placed.open()
    save_label(store, array=np.zeros_like(labels()))
    until(lambda: not store.unsent())
    assert "archive_problem" not in store.label(CT, "final").info
    (stored,) = segmentations(placed.archive)
    assert not stored.pixel_array.any()


def test_a_label_of_a_series_that_was_made_anonymous_by_leaving_things_out_is_in_the_archive(placed: Placed) -> None:
    new = write_series(placed.folder / "new", voxels(), AFFINES["oblique"], series="1.2.7", study="1.2.7.9")
    for file in new:
        dataset = pydicom.dcmread(file)
        for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "StudyTime", "ReferringPhysicianName"):
            if keyword in dataset:
                del dataset[keyword]
        dataset.save_as(file)
    placed.archive.store(new)
    store = placed.open()
    save_label(store, "1.2.7")
    until(lambda: not store.unsent())
    assert "archive_problem" not in store.label("1.2.7", "final").info


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of the archive are waited for, however long they take on a busy machine."""
    for name in ("FIRST_SEARCH_S", "LABEL_SEARCH_S"):
        monkeypatch.setattr(dicomweb, name, 600.0)


@pytest.mark.usefixtures("unhurried")
def test_labels_in_the_archive_are_labels_of_a_new_server(placed: Placed) -> None:
    first = placed.open()
    for number in range(2):
        save_label(first, array=np.roll(labels(), number, axis=1))
        until(lambda: not first.unsent())
    first.close()
    theirs = placed.folder / "theirs.dcm"
    theirs.write_bytes(encode(Segmentation(array=labels()[::-1], affine=AFFINES["oblique"]), placed.folder / CT))
    edit(theirs, Manufacturer="Somebody", SeriesDescription="final, by hand")
    placed.archive.store([theirs])
    (placed.folder / "workspace").rename(placed.folder / "lost")

    store = placed.open()
    store.image(CT)
    final, original = store.label(CT, "final"), store.label(CT, "original")
    np.testing.assert_array_equal(nibabel.load(final.path).get_fdata(), np.roll(labels(), 1, axis=1))
    np.testing.assert_array_equal(nibabel.load(original.path).get_fdata(), labels()[::-1])
    assert final.info["params"]["label_names"] == NAMES
    assert final.info["user"] == "archive"
    assert store.unsent() == []
    assert len(segmentations(placed.archive)) == 3
    assert store.labels(MR) == {}


@pytest.mark.usefixtures("unhurried")
def test_segmentations_by_dcmqi_are_labels_also_when_they_come_late_and_overlap(placed: Placed) -> None:
    placed.archive.store([*sorted(real("dcmqi_seg", "ct-3slice").iterdir()), real("dcmqi_seg", "liver.dcm")])
    store = placed.open(dicomweb={"fresh": 0.0})
    (image_id,) = set(store.image_ids()) - {CT, MR}
    grid = read_grid(store.image(image_id).path)
    wanted = read_segmentation(real("dcmqi_seg", "liver.dcm"), grid, max_bytes=MAX)
    label = store.label(image_id, "original")
    np.testing.assert_array_equal(nibabel.load(label.path).get_fdata(), wanted.array)
    assert label.info["params"]["label_names"] == {"Liver": 1}

    late = placed.folder / "late.dcm"
    late.write_bytes(real("dcmqi_seg", "partial_overlaps.dcm").read_bytes())
    edit(late, ContentDate="20991231")
    placed.archive.store([late])
    masks = read_masks(late, grid, max_bytes=MAX)
    label = until(lambda: (found := store.labels(image_id)["original"]).info.get("overlapping") and found)
    shown = nibabel.load(label.path).get_fdata()
    np.testing.assert_array_equal(shown > 0, masks.array.any(axis=0))
    sizes = {value: masks.array[value - 1].sum() for value in label.info["params"]["label_names"].values()}
    for value, size in sizes.items():
        over = shown[masks.array[value - 1]]
        assert all(other == value or sizes[other] <= size for other in np.unique(over))
    assert (masks.array.sum(axis=0) > 1).any()
    assert [one.user for one in store.revisions(image_id, "original")] == ["archive", "archive"]
    store.labels(image_id)
    assert len(store.revisions(image_id, "original")) == 2


def test_a_label_made_here_does_not_give_way_to_one_that_comes_into_the_archive(placed: Placed) -> None:
    store = placed.open(dicomweb={"fresh": 0.0})
    save_label(store, tag="original")
    theirs = placed.folder / "theirs.dcm"
    theirs.write_bytes(encode(Segmentation(array=labels()[::-1], affine=AFFINES["oblique"]), placed.folder / CT))
    edit(theirs, Manufacturer="Somebody")
    placed.archive.store([theirs])
    label = store.label(CT, "original")
    np.testing.assert_array_equal(nibabel.load(label.path).get_fdata(), labels())


def test_a_look_for_labels_waits_for_no_archive_that_says_nothing(
    placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "LABEL_SEARCH_S", 0.1)
    store = placed.open(dicomweb={"fresh": 0.0, "timeout": 600.0})
    save_label(store, tag="original")
    until(lambda: not store.unsent())
    placed.front.way = HELD
    with ThreadPoolExecutor(1) as pool:
        looked = pool.submit(store.labels, CT)
        try:
            assert "original" in looked.result(20)
        finally:
            placed.front.way = PLAIN
