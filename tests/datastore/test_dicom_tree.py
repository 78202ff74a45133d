"""DICOM files lying anyhow in a studies folder: each series is an image, its labels lie as everywhere."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rayapp.datastore import dicom_tree
from rayapp.datastore.interfaces import Author
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Disabled, NotFound, Unreadable
from rayapp.imaging.reader import read_volume
from tests.imaging.grids import AFFINES, MAX, labels, voxels
from tests.imaging.series import edit, write_series
from tests.real_data import real

ONE, TWO, THREE, FOUR = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ONE and TWO in one folder, THREE three folders down, FOUR loose at the top; a folder of one series, `whole`."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for place, series, affine in (
        ("mixed", ONE, "oblique"),
        ("mixed", TWO, "left-handed"),
        ("patient/study/series", THREE, "permuted-201"),
        (".", FOUR, "oblique-flipped"),
        ("whole", "1.2.3.5", "straight"),
    ):
        files = write_series(tmp_path / series, voxels(), AFFINES[affine], series=series, study=f"{series}.9")
        (studies / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, studies / place / f"{series}-{file.name[:-4]}")  # without an extension, as exports are
    (studies / "patient" / "README.txt").write_text("exported on a Tuesday")
    (studies / "patient" / "report.pdf").write_bytes(b"%PDF")
    (studies / "patient" / "lost.dcm").symlink_to(tmp_path / "nowhere")
    (studies / "patient" / "cut.dcm").write_bytes(bytes(128) + b"DICM" + b"\2\0\0")
    return studies


@pytest.fixture
def opened(tree: Path) -> Iterator[Callable[[], LocalDatastore]]:
    stores: list[LocalDatastore] = []

    def open_it() -> LocalDatastore:
        stores.append(LocalDatastore(tree, watch=False, settle=0.0))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def test_each_series_is_an_image_wherever_its_files_lie(
    tree: Path, tmp_path: Path, opened: Callable[[], LocalDatastore]
) -> None:
    store = opened()
    assert store.image_ids() == [ONE, TWO, THREE, FOUR, "whole"]
    for series in (ONE, TWO, THREE, FOUR):
        found = read_volume(store.image(series).path, max_bytes=MAX)
        wanted = read_volume(tmp_path / series, max_bytes=MAX)
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)
    info = store.image(THREE).info
    assert {"Modality": "CT", "StudyInstanceUID": f"{THREE}.9", "PatientID": "P1"}.items() <= info.items()
    assert store.instances(ONE) == store.image(ONE).path


def test_labels_lie_where_they_always_do_and_survive_a_restart(
    tree: Path, tmp_path: Path, opened: Callable[[], LocalDatastore]
) -> None:
    store = opened()
    staged = store.stage(".nii.gz")
    nibabel.Nifti1Image(labels(), np.eye(4)).to_filename(staged)
    store.save_label(ONE, "final", staged, ".nii.gz", info={}, author=Author())
    store.update_image_info(TWO, {"note": "hard"})
    store.close()
    assert (tree / "labels" / "final" / f"{ONE}.nii.gz").exists()
    store = opened()
    assert store.label(ONE, "final").id == ONE
    assert store.image(TWO).info["note"] == "hard"
    assert store.archive(tmp_path / "all.zip") == 1
    names = zipfile.ZipFile(tmp_path / "all.zip").namelist()
    assert len([name for name in names if name.startswith(f"image/{ONE}/")]) == voxels().shape[2]


def test_files_are_parsed_once_also_over_restarts(
    tree: Path, opened: Callable[[], LocalDatastore], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().close()
    parsed: list[Path] = []
    real_one = dicom_tree._Header.of
    monkeypatch.setattr(dicom_tree._Header, "of", lambda path: parsed.append(path) or real_one(path))
    store = opened()
    store.refresh()
    assert [path.name for path in parsed if path.suffix not in (".txt", ".pdf", ".dcm")] == []
    assert store.image_ids() == [ONE, TWO, THREE, FOUR, "whole"]


def test_files_that_come_go_and_change_are_noticed(
    tree: Path, tmp_path: Path, opened: Callable[[], LocalDatastore]
) -> None:
    store = opened()
    new = write_series(tree / "patient" / "second" / "x", voxels(), AFFINES["straight"], series="1.2.3.6")
    shutil.rmtree(tree / "patient" / "study")
    for file in (tree / "mixed").glob(f"{TWO}*"):
        file.rename(tree / "patient" / file.name)
    store.refresh()
    assert store.image_ids() == [ONE, TWO, FOUR, "1.2.3.6", "whole"]
    np.testing.assert_array_equal(
        read_volume(store.image(TWO).path, max_bytes=MAX).array, read_volume(tmp_path / TWO, max_bytes=MAX).array
    )
    with pytest.raises(NotFound):
        store.image(THREE)
    new[0].unlink()
    store.refresh()
    assert len(list(store.image("1.2.3.6").path.iterdir())) == len(new) - 1


def test_a_series_that_vanishes_before_it_is_described_has_no_attributes(tree: Path) -> None:
    found = dicom_tree.DicomTree(tree)
    assert found.info("1.2.3.999") == {}
    found.scan({})
    again = dicom_tree.DicomTree(tree)
    again.scan({})
    shutil.rmtree(again.path(ONE))
    assert again.info(ONE) == {}
    assert again.info(TWO)["SeriesInstanceUID"] == TWO


def test_a_series_below_the_folder_is_not_removed_from_here(tree: Path, opened: Callable[[], LocalDatastore]) -> None:
    store = opened()
    with pytest.raises(Disabled):
        store.remove_image(ONE)
    assert ONE in store.image_ids()
    store.remove_image("whole")
    assert not (tree / "whole").exists()


def test_an_image_keeps_its_id_when_further_echoes_arrive_or_leave(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    (studies / "mr" / "in").mkdir(parents=True)

    def arrive(echo: int) -> None:
        array = voxels() + np.int16(1000 * echo)
        for file in write_series(
            tmp_path / f"sent{len(list(tmp_path.iterdir()))}", array, AFFINES["oblique"], series=ONE
        ):
            edit(file, EchoNumbers=echo)
            shutil.copy(file, studies / "mr" / "in" / f"{echo}-{file.name}")

    def echoes(wanted: dict[str, int]) -> None:
        store = LocalDatastore(studies, watch=False, settle=0.0)
        assert store.image_ids() == sorted(wanted)
        for image_id, echo in wanted.items():
            found = read_volume(store.image(image_id).path, max_bytes=MAX).array[0]
            np.testing.assert_array_equal(found - 1000 * echo, voxels())
        store.close()

    arrive(2)
    echoes({ONE: 2})
    arrive(1)
    echoes({ONE: 2, f"{ONE}_echo-1": 1})
    arrive(3)
    echoes({ONE: 2, f"{ONE}_echo-1": 1, f"{ONE}_echo-3": 3})
    for file in (studies / "mr" / "in").glob("[23]-*"):
        file.unlink()
    echoes({f"{ONE}_echo-1": 1})
    arrive(2)
    echoes({f"{ONE}_echo-1": 1, f"{ONE}_echo-2": 2})


def test_a_second_echo_in_a_folder_that_is_an_image_is_refused_until_it_lies_elsewhere(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    for folder in ("mr", "other"):
        (studies / folder).mkdir(parents=True)

    def arrive(echo: int, folder: str) -> None:
        array = voxels() + np.int16(1000 * echo)
        for file in write_series(tmp_path / f"echo{echo}", array, AFFINES["oblique"], series=ONE):
            edit(file, EchoNumbers=echo)
            shutil.copy(file, studies / folder / f"{echo}-{file.name}")

    def images() -> dict[str, int | str]:
        store = LocalDatastore(studies, watch=False, settle=0.0)
        found: dict[str, int | str] = {}
        for image_id in store.image_ids():
            try:
                found[image_id] = int(read_volume(store.image(image_id).path, max_bytes=MAX).array.min()) // 1000
            except Unreadable as error:
                found[image_id] = error.detail
        store.close()
        return found

    arrive(1, "mr")
    assert images() == {"mr": 1}
    arrive(2, "mr")
    assert "keep one phase or echo per folder" in str(images()["mr"])
    for file in (studies / "mr").glob("2-*"):
        file.rename(studies / "other" / file.name)
    assert images() == {"mr": 1, "other": 2}


def test_echoes_in_one_series_are_images_of_their_own(tmp_path: Path) -> None:
    """Also in a folder of their own, after a restart, and while slices come and go."""
    studies = tmp_path / "studies"
    (studies / "mr").mkdir(parents=True)
    for echo in (1, 2):
        array = voxels() + np.int16(1000 * echo)
        for file in write_series(tmp_path / f"echo{echo}", array, AFFINES["oblique"], series=ONE):
            edit(file, EchoNumbers=echo)
            shutil.copy(file, studies / "mr" / f"{echo}-{file.name}")

    def echoes(slices: int = 4) -> None:
        store = LocalDatastore(studies, watch=False, settle=0.0)
        assert store.image_ids() == [f"{ONE}_echo-1", f"{ONE}_echo-2"]
        for echo in (1, 2):
            record = store.image(f"{ONE}_echo-{echo}")
            assert record.info["SeriesDescription"] == f"phantom echo-{echo}"
            assert record.info["SeriesInstanceUID"] == ONE
            found = read_volume(record.path, max_bytes=MAX).array[0]
            assert found.shape[2] == (slices if echo == 2 else 4)
            np.testing.assert_array_equal(found - 1000 * echo, voxels()[:, :, : found.shape[2]])
        store.close()

    echoes()
    echoes()
    last = next(file for file in (studies / "mr").glob("2-*") if _is_last(file))
    content = last.read_bytes()
    last.unlink()
    echoes(slices=3)
    last.write_bytes(content)
    echoes()


def _is_last(file: Path) -> bool:
    stored = pydicom.dcmread(file).pixel_array.T
    return bool((stored == voxels()[:, :, -1] + 2000).all())


def test_a_deflated_file_is_left_out_by_its_transfer_syntax_and_never_inflated(
    tree: Path, opened: Callable[[], LocalDatastore], monkeypatch: pytest.MonkeyPatch
) -> None:
    deflated = pydicom.dcmread(next(path for path in (tree / "mixed").iterdir()))
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated.save_as(tree / "mixed" / "deflated")
    monkeypatch.setattr("zlib.decompress", None)
    problems = opened().status()["problems"]
    assert "deflated" in problems["mixed/deflated"]
    assert "TransferSyntaxUID" in problems["mixed/deflated"]


def test_a_folder_that_holds_no_images_is_named_with_what_it_holds(tmp_path: Path) -> None:
    for folder in ("dose", "study/dose"):
        for file in write_series(tmp_path / folder, voxels(), AFFINES["oblique"], series=TWO):
            edit(file, Modality="RTDOSE")
    write_series(tmp_path / "study" / "ct", voxels(), AFFINES["oblique"], series=ONE)
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    assert store.image_ids() == [ONE]
    assert store.status()["problems"] == {"dose": "it holds no DICOM images, only RTDOSE: copy the images too"}
    store.close()


def test_files_without_the_header_of_a_dicom_file_are_named(tmp_path: Path) -> None:
    files = write_series(tmp_path / "old", voxels(), AFFINES["oblique"], series=ONE)
    for file in files:
        file.write_bytes(file.read_bytes()[132:])
    files[0].write_text("an error page")
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    assert store.image_ids() == []
    problems = store.status()["problems"]
    store.close()
    assert "is no DICOM file" in problems.pop(f"old/{files[0].name}")
    assert problems.keys() == {f"old/{file.name}" for file in files[1:]}
    assert all("dcmconv" in reason for reason in problems.values())


def test_a_second_copy_of_a_study_changes_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "disc" / "in", voxels(), AFFINES["oblique"], series=ONE)
    shutil.copytree(tmp_path / "disc", tmp_path / "disc (1)")
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    assert store.image_ids() == [ONE]
    np.testing.assert_array_equal(read_volume(store.image(ONE).path, max_bytes=MAX).array[0], voxels())
    store.close()


def test_real_series_in_one_heap_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "heap").mkdir()
    for name in ("hippocrop_1", "hippocrop_2"):
        for file in real("dicom_mr", name).iterdir():
            shutil.copy(file, tmp_path / "heap" / f"{name}-{file.name}")
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    try:
        first, second = (store.image(image_id) for image_id in store.image_ids())
        shapes = {read_volume(record.path, max_bytes=MAX).shape for record in (first, second)}
        wanted = {read_volume(real("dicom_mr", name), max_bytes=MAX).shape for name in ("hippocrop_1", "hippocrop_2")}
        assert shapes == wanted
    finally:
        store.close()
