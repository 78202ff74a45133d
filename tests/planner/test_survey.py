"""Surveys of folders of which everything is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.table import Table

from rayapp.commands import doctor
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import NotFound
from rayapp.planner import survey
from rayapp.planner.studies import opened
from rayapp.planner.survey import MAX_DECODED, MAX_HEADERS, NothingReadable, Survey, cached_survey, survey_folder
from tests.imaging.series import edit, write_series

SHAPE = (20, 14, 9)
EDGES = (0.9, 1.1, 4.0)
"""Along the file's axes, which point to S, L and P."""
TURN = np.array([[0, -1.0, 0], [0, 0, -1.0], [1.0, 0, 0]])


def affine(edges: tuple[float, float, float] = EDGES) -> np.ndarray:
    whole = np.eye(4)
    whole[:3, :3] = TURN * np.array(edges)
    whole[:3, 3] = (30, -20, 11)
    return whole


def write(path: Path, array: np.ndarray, *, edges: tuple[float, float, float] = EDGES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, affine(edges)).to_filename(path)


def noise(low: int, high: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(np.int16)


def marked() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:12, 3:5, 4:5] = 1
    labels[10:16, 8:12, 1:8] = 4
    return labels


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for number in range(3):
        write(tmp_path / f"scan_{number}.nii.gz", noise(0, 1000))
    write(tmp_path / "labels" / "final" / "scan_1.nii.gz", marked())
    return tmp_path


def test_spacing_and_size_are_those_along_r_a_s(studies: Path):
    found = survey_folder(studies)
    assert found.spacing == pytest.approx((1.1, 4.0, 0.9))
    assert found.size == (14, 9, 20)
    assert found.extent == pytest.approx((14 * 1.1, 9 * 4.0, 20 * 0.9))
    assert (found.slice_axis, found.axes(2), found.axes(3)) == (1, [0, 2], [0, 1, 2])


def test_medians_stand_for_most_images_and_the_extent_for_almost_all(studies: Path):
    write(studies / "long.nii.gz", noise(0, 9, (100, 14, 9)), edges=(2.0, 1.1, 4.0))
    found = survey_folder(studies)
    assert found.spacing == pytest.approx((1.1, 4.0, 0.9))
    assert found.extent[2] > 0.8 * 100 * 2.0


def test_structures_have_the_volume_and_the_box_that_was_drawn(studies: Path):
    found = survey_folder(studies)
    voxel = 0.9 * 1.1 * 4.0 / 1000
    assert found.labelled == 1
    assert {value: structure.volume for value, structure in found.structures.items()} == pytest.approx(
        {1: 20 * voxel, 4: 6 * 4 * 7 * voxel}
    )
    assert found.structures[1].box == pytest.approx((2 * 1.1, 1 * 4.0, 10 * 0.9))
    assert found.foreground == pytest.approx((9 * 1.1, 7 * 4.0, 14 * 0.9))


def test_a_submitted_label_comes_before_an_original_one(studies: Path):
    write(studies / "labels" / "original" / "scan_1.nii.gz", np.ones(SHAPE, np.uint8))
    assert set(survey_folder(studies).structures) == {1, 4}


def test_hounsfield_units_are_known_by_their_air(tmp_path: Path):
    write(tmp_path / "ct.nii.gz", np.where(noise(0, 10) < 5, -1000, noise(-50, 200)).astype(np.int16))
    write(tmp_path / "mr" / "mr.nii.gz", noise(-20, 800))
    assert survey_folder(tmp_path).modality == "CT"
    assert survey_folder(tmp_path / "mr").modality == "MR"


def test_intensities_of_structures_are_known_in_hounsfield_units(tmp_path: Path):
    labels = marked()
    values = np.where(labels > 0, noise(-900, -700), np.where(noise(0, 10) < 5, -1000, noise(-50, 200)))
    write(tmp_path / "ct.nii.gz", values.astype(np.int16))
    write(tmp_path / "labels" / "final" / "ct.nii.gz", labels)
    low, middle, high = survey_folder(tmp_path).foreground_intensities or (0, 0, 0)
    assert -900 <= low < -890 < -810 < middle < -790 < -710 < high < -700


def test_intensities_and_channels_are_those_of_the_images(tmp_path: Path):
    write(tmp_path / "two.nii.gz", np.stack([noise(100, 201), noise(0, 5)], axis=-1))
    found = survey_folder(tmp_path)
    assert found.channels == 2
    assert found.intensities == pytest.approx((100, 150, 200), abs=2)


def test_what_cannot_be_read_is_counted_and_left_out(studies: Path):
    (studies / "torn.nii.gz").write_bytes(b"not an image")
    found = survey_folder(studies)
    assert (found.images, found.sampled, found.unreadable) == (4, 3, 1)


def test_no_modality_is_claimed_where_no_image_could_be_decoded(studies: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(survey, "MAX_BYTES", 8)
    found = survey_folder(studies)
    assert (found.sampled, found.modality, found.intensities) == (3, None, None)
    table = Table("name", "value")
    doctor._survey(table, found)
    assert "could be decoded" in " ".join(table.columns[1].cells)


def test_the_work_is_bounded_however_many_images_there_are(studies: Path):
    image = studies / "scan_1.nii.gz"
    images = [image] * 5000
    told = []
    found = Survey.of(
        images, {image: studies / "labels" / "final" / "scan_1.nii.gz"}, progress=lambda *at: told.append(at)
    )
    assert (found.images, found.sampled) == (5000, MAX_HEADERS)
    assert told[-1] == (MAX_HEADERS + 2 * MAX_DECODED,) * 2
    assert len(told) == MAX_HEADERS + 2 * MAX_DECODED


def test_no_image_and_no_folder_are_said_to_be_so(tmp_path: Path):
    with pytest.raises(NotFound, match="no images"):
        survey_folder(tmp_path)
    with pytest.raises(NotFound, match="the studies folder does not exist"):
        survey_folder(tmp_path / "absent")


def test_a_survey_is_remembered_until_a_file_changes(studies: Path):
    labels = {studies / "scan_1.nii.gz": studies / "labels" / "final" / "scan_1.nii.gz"}
    first = cached_survey(labels)
    assert cached_survey(labels) is first
    write(studies / "labels" / "final" / "scan_1.nii.gz", np.roll(marked(), 1, 0) * 2)
    assert set(cached_survey(labels).structures) == {2, 8}


def test_what_is_left_out_and_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "good.nii.gz", noise(0, 9))
    (tmp_path / "cut[1].nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:40])
    (tmp_path / "lost.nii.gz").symlink_to("nowhere")
    final = tmp_path / "labels" / "final"
    write(final / "good.nii.gz", marked())
    (final / "loop.nii.gz").symlink_to("loop.nii.gz")
    problems = survey_folder(tmp_path).problems
    assert list(problems) == ["cut[1].nii.gz", "labels/final/loop.nii.gz", "lost.nii.gz"]
    assert "truncated" in problems["cut[1].nii.gz"]
    assert "link to itself" in problems["labels/final/loop.nii.gz"]
    with opened(tmp_path) as found:
        assert found.labels == {tmp_path / "good.nii.gz": final / "good.nii.gz"}


def test_dicom_series_in_subfolders_are_surveyed_under_the_ids_that_a_server_gives_them(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    for echo in (1, 2):
        for file in write_series(tmp_path / f"echo{echo}", noise(0, 9), affine(), series="1.2.3", modality="MR"):
            edit(file, EchoNumbers=echo)
            (studies / "mr").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, studies / "mr" / f"{echo}-{file.name}")
    files = write_series(studies / "patient" / "ct", noise(0, 9), affine(), series="1.2.4")
    files[1].unlink()
    (studies / "patient" / "dwi").mkdir()
    write(studies / "labels" / "final" / "1.2.3_echo-2.nii.gz", marked())
    before = sorted(studies.rglob("*"))
    found = survey_folder(studies)
    assert (found.images, found.labelled, found.sampled, found.size) == (3, 1, 2, (14, 9, 20))
    assert list(found.problems) == ["1.2.4"]
    assert "not evenly spaced" in found.problems["1.2.4"]
    assert sorted(studies.rglob("*")) == before
    store = LocalDatastore(studies, watch=False, settle=0.0)
    assert store.image_ids() == ["1.2.3_echo-1", "1.2.3_echo-2", "1.2.4"]
    store.close()
    assert survey_folder(studies) == found


def test_where_no_image_can_be_read_the_reasons_are_told(tmp_path: Path) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08 cut")
    (tmp_path / "lost.nii.gz").symlink_to("nowhere")
    with pytest.raises(NothingReadable, match="none of the sampled images") as raised:
        survey_folder(tmp_path)
    assert list(raised.value.problems) == ["cut.nii.gz", "lost.nii.gz"]
    assert "not there" in raised.value.problems["lost.nii.gz"]
