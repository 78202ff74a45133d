"""Studies in an archive: a real Orthanc, behind a front that can misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from rayapp.datastore.interfaces import Author
from rayapp.errors import ArchiveAway, ArchiveSlow, Disabled, NotFound, Unreadable
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.reader import read_grid, read_volume
from tests.datastore.placed import CT, MR, TILTED, US, Placed, save_label, segmentations
from tests.front import BROKEN, CUT, DENIED, PLAIN, SLOW
from tests.imaging.grids import AFFINES, MAX, assert_same_affine, labels, voxels
from tests.imaging.series import compress, edit, enhanced, tilt, write_series
from tests.orthanc import needs_orthanc
from tests.waiting import until

pytestmark = needs_orthanc


def test_the_ct_and_mr_series_are_the_images_with_what_viewers_want_to_know(placed: Placed) -> None:
    store = placed.open()
    assert store.image_ids() == [CT, MR]
    assert store.status()["total"] == 2
    info = store.image(CT).info
    assert info["name"] == f"{CT}.nii"
    wanted = {"Modality": "CT", "StudyInstanceUID": f"{CT}.9", "PatientID": "P1", "StudyDate": "20240229"}
    assert wanted.items() <= info.items()


@pytest.mark.parametrize(
    ("conf", "found"),
    [
        ({"qido.Modality": "US"}, [US]),
        ({"qido.Modality": "US,MR"}, [MR, US]),
        ({"qido.SeriesDescription": "*nothing*"}, []),
        ({"qido.SeriesDescription": "phan*"}, [CT, MR]),
        ({"qido.StudyDate": "20240228-20240301", "qido.Modality": "CT"}, [CT]),
        ({"qido.StudyDate": "20250101-"}, []),
    ],
    ids=str,
)
def test_filters_narrow_the_list(placed: Placed, conf: dict[str, str], found: list[str]) -> None:
    assert placed.open(conf=conf).image_ids() == found


def test_long_lists_come_in_pages(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.PAGE", 2)
    for number in range(5):
        series = f"1.2.4.{number}"
        placed.archive.store(
            write_series(placed.folder / series, voxels((2, 3, 1)), AFFINES["straight"], series=series, study="1.2.4")
        )
    assert placed.open().image_ids() == [CT, MR, *(f"1.2.4.{n}" for n in range(5))]
    assert any("offset=4" in path for path in placed.front.paths("/series?"))


@pytest.mark.parametrize("name", [CT, MR])
def test_a_series_is_retrieved_once_with_the_voxels_and_the_grid_of_its_slices(placed: Placed, name: str) -> None:
    store = placed.open()
    path = store.image(name).path
    wanted, found = read_volume(placed.folder / name, max_bytes=MAX), read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert_same_affine(found.affine, wanted.affine)
    assert len(list(store.instances(name).iterdir())) == voxels().shape[2]
    store.image(name)
    assert len([p for p in placed.front.paths(name) if "instances" not in p and "/series/" in p]) == 1


def test_compressed_series_are_retrieved_as_they_are_stored(placed: Placed) -> None:
    files = write_series(placed.folder / "rle", voxels(), AFFINES["oblique"], series="1.2.5", study="1.2.5.9")
    compress(files, "1.2.840.10008.1.2.5")
    placed.archive.store(files)
    store = placed.open()
    np.testing.assert_array_equal(read_volume(store.image("1.2.5").path, max_bytes=MAX).array[0], voxels())


def test_an_enhanced_object_is_an_image_and_its_label_lies_on_its_frames(placed: Placed) -> None:
    files = write_series(placed.folder / "classic", voxels(), AFFINES["oblique"], series="1.2.7", study="1.2.7.9")
    placed.archive.store(enhanced(placed.folder / "enhanced", files).iterdir())
    store = placed.open()
    found = read_volume(store.image("1.2.7").path, max_bytes=MAX)
    np.testing.assert_array_equal(found.array[0], voxels())
    assert_same_affine(found.affine, AFFINES["oblique"])
    save_label(store, "1.2.7")
    until(lambda: not store.unsent())
    (seg,) = segmentations(placed.archive)
    seg.save_as(placed.folder / "seg.dcm", enforce_file_format=True)
    label = read_segmentation(placed.folder / "seg.dcm", read_grid(placed.folder / "enhanced"), max_bytes=MAX)
    np.testing.assert_array_equal(label.array, labels())


def test_a_series_that_is_no_volume_is_refused_with_its_reason_and_not_retrieved_again(placed: Placed) -> None:
    files = write_series(placed.folder / "gap", voxels(), AFFINES["oblique"], series="1.2.6", study="1.2.6.9")
    placed.archive.store(files[:1] + files[2:])
    store = placed.open()
    for _ in range(2):
        with pytest.raises(Unreadable, match="missing"):
            store.image("1.2.6")
    assert len([p for p in placed.front.paths("1.2.6") if p.endswith("/series/1.2.6")]) == 1


@pytest.mark.parametrize(("way", "error"), [(BROKEN, ArchiveAway), (DENIED, ArchiveAway), (SLOW, ArchiveSlow)])
def test_a_series_cannot_be_had_from_an_archive_that_misbehaves(
    placed: Placed, way: str, error: type[Exception]
) -> None:
    store = placed.open(dicomweb={"timeout": 2.0} if way == SLOW else {})
    placed.front.way = way
    with pytest.raises(error, match="archive"):
        store.image(CT)
    placed.front.way = PLAIN
    assert store.image(CT).path.exists()


def test_a_series_cut_off_on_the_way_is_not_kept(placed: Placed) -> None:
    store = placed.open()
    placed.front.way, placed.front.only = CUT, f"/series/{CT}"
    with pytest.raises(ArchiveAway):
        store.image(CT)
    assert not list((placed.folder / "workspace" / "retrieved").iterdir())
    placed.front.way = PLAIN
    assert read_grid(store.image(CT).path).shape == voxels().shape


def test_with_the_archive_away_what_was_seen_is_there_and_the_clicks_too(placed: Placed) -> None:
    store = placed.open()
    store.image(CT)
    store.close()
    placed.front.way = BROKEN
    store = placed.open()
    assert store.image_ids() == [CT, MR]
    assert store.image(CT).path.exists()
    store.refresh()
    assert store.image_ids() == [CT, MR]
    with pytest.raises(ArchiveAway):
        store.image(MR)
    with pytest.raises(NotFound):
        store.image("1.2.3")


def test_new_series_come_and_removed_ones_go_and_find_their_infos_again(placed: Placed) -> None:
    store = placed.open()
    store.update_image_info(MR, {"note": "hard"})
    placed.archive.store(
        write_series(placed.folder / "new", voxels(), AFFINES["oblique"], series="1.2.7", study="1.2.7.9")
    )
    (found,) = placed.archive.find("Series", {"SeriesInstanceUID": MR})
    placed.archive.remove("series", found)
    store.refresh()
    assert store.image_ids() == [CT, "1.2.7"]
    placed.archive.store(sorted((placed.folder / MR).iterdir()))
    store.refresh()
    assert store.image(MR).info["note"] == "hard"


def test_a_series_that_came_after_the_last_look_is_there_when_it_is_asked_for(placed: Placed) -> None:
    store = placed.open(conf={"qido.Modality": "CT"})
    for series, modality in (("1.2.7", "CT"), ("1.2.8", "MR")):
        affine, study = AFFINES["oblique"], f"{series}.9"
        new = write_series(placed.folder / series, voxels(), affine, series=series, study=study, modality=modality)
        placed.archive.store(new)
    assert read_grid(store.image("1.2.7").path).shape == voxels().shape
    assert store.image_ids() == [CT, "1.2.7"]
    for unwanted in ("1.2.8", "1.2.99", "*", "../1"):
        with pytest.raises(NotFound):
            store.image(unwanted)


def test_a_series_is_handed_out_without_being_retrieved(placed: Placed) -> None:
    served = placed.open().serve_next(CT, "first", client_id=None, ts=1, holder="anna")
    assert served is not None
    assert served.info["StudyInstanceUID"] == f"{CT}.9"
    assert not served.path.exists()


def test_series_not_used_for_longest_make_room(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayapp.datastore.series_cache.GRACE_S", 0.0)
    store = placed.open(dicomweb={"cache": 1})
    first = store.image(CT).path
    os.utime(first.parent, (0, 0))
    second = store.image(MR).path
    assert not first.exists()
    assert second.exists()
    assert store.image(CT).path.exists()


def test_labelled_series_are_there_for_training(placed: Placed) -> None:
    store = placed.open()
    save_label(store)
    until(lambda: not store.unsent())  # the sender retrieves series too
    (placed.folder / "workspace" / "retrieved").rename(placed.folder / "elsewhere")
    (placed.folder / "workspace" / "retrieved").mkdir()
    (pair,) = store.datalist()
    assert Path(pair["image"]).exists()


def test_images_are_neither_added_nor_removed_here(placed: Placed) -> None:
    store = placed.open()
    staged = store.stage(".nii")
    staged.write_bytes(b"x")
    with pytest.raises(Disabled, match="archive"):
        store.add_image("a", staged, ".nii", info={}, author=Author())
    with pytest.raises(Disabled, match="archive"):
        store.remove_image(CT)
    assert store.image_ids() == [CT, MR]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_ids_that_name_paths_are_passed_over(placed: Placed) -> None:
    file = write_series(placed.folder / "bad", voxels((2, 3, 1)), AFFINES["straight"], series="1.2.8", study="1.8")[0]
    edit(file, SeriesInstanceUID="../../x")
    placed.archive.store([file])
    assert placed.open().image_ids() == [CT, MR]


def _across(files: list[Path]) -> None:
    edit(files[2], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (tilt, "gantry tilt"),
        (lambda files: files.pop(2), "one is missing"),
        (lambda files: edit(files[3], ImagePositionPatient=pydicom.dcmread(files[2]).ImagePositionPatient), "same pos"),
        (_across, "not parallel: remove the localizer"),
        (lambda files: edit(files[1], PixelSpacing=[3, 3]), "differ in pixel spacing"),
        (lambda files: edit(files[1], Rows=5, Columns=11), "differ in size"),
    ],
    ids=["tilt", "missing slice", "duplicate position", "localizer", "spacing", "size"],
)
def test_what_is_no_even_stack_is_refused_in_words_and_the_rest_goes_on(
    placed: Placed, odd: Callable[[list[Path]], Any], told: str
) -> None:
    files = write_series(placed.folder / "odd", voxels(), AFFINES["straight"], series=TILTED, study="1.9")
    odd(files)
    placed.archive.store(files)
    store = placed.open()
    assert TILTED in store.image_ids()
    for _ in range(2):
        with pytest.raises(Unreadable, match=told):
            store.image(TILTED)
    assert store.image(CT).path.exists()
