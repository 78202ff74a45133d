"""DICOM series as they were found lying about: each is served with the voxels that pydicom alone finds at its slices'
positions, in a folder, in an archive and as DICOM SEG, or is refused with the same reason everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from rayapp.datastore.interfaces import NOT_STORABLE
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import RayappError, Unreadable
from rayapp.imaging import dicom_instances
from rayapp.imaging.dicom_seg import encode, read_segmentation
from rayapp.imaging.reader import read_grid, read_volume
from rayapp.imaging.volume import Segmentation, Volume
from rayapp.planner.survey import NothingReadable, survey_folder
from tests.datastore.archive_twin import Twins, twins
from tests.imaging.grids import MAX
from tests.real_data import case
from tests.waiting import until

__all__ = ["twins"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SERVED = (
    *("01-plain", "10-monochrome1", "11-slope-per-slice", "13-jpegls", "14-jpeg2000", "15-rle", "18-iso2022"),
    *("18b-utf8", "20-empty-patientid", "23-rtstruct", "24-enhanced-ct", "25-single-slice"),
    *("26-shuffled-instance-numbers", "33-flipped-rows", "34-aniso-pixels", "35-modality-lut", "37-pet"),
    *("39-iop-jitter", "44-no-frame-of-reference", "45-frame-of-reference-per-slice"),
)
"""Series that are one volume."""
APART = {
    "02-localizer": ["type-ORIGINAL-PRIMARY-AXIAL-HELIX", "type-ORIGINAL-PRIMARY-LOCALIZER"],
    "08-4d": ["time-1", "time-2", "time-3"],
    "09-multi-echo": ["echo-1", "echo-2"],
}
"""Series of several volumes, and their names."""
REFUSED = {
    "03-missing-slice": "not evenly spaced",
    "04-duplicated-slice": "same position",
    "05-mixed-orientations": "not parallel",
    "06-gantry-tilt": "gantry tilt",
    "07-no-pixelspacing": "PixelSpacing is missing",
    "16-deflated": "TransferSyntaxUID: deflated",
    "21-secondary-capture": "ImageOrientationPatient is missing",
    "21b-ct-screen-save": "ImageOrientationPatient is missing",
    "24b-enhanced-ct-4d": "TemporalPositionIndex: one file holds 2 volumes",
    "27-uneven-spacing": "not evenly spaced",
    "28-mixed-sizes": "differ in size",
    "29-two-frames-of-reference": "FrameOfReferenceUID",
    "30-no-pixeldata": "no PixelData",
    "31-truncated-pixels": "PixelData is truncated",
    "46-mosaic": "MOSAIC",
}
"""Series that are no volume, and words of the reason."""
UNSTORABLE = ("44-no-frame-of-reference", "45-frame-of-reference-per-slice")
"""Series for which no DICOM SEG can be made."""


def files(name: str) -> list[Path]:
    return sorted(path for path in case("dicom", name).iterdir() if path.suffix == ".dcm")


def frames(datasets: list[Dataset]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Values, and an affine from (row, column) to LPS mm, of each slice, by pydicom alone."""
    for dataset in datasets:
        if "Rows" not in dataset:
            continue
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or [dataset]
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        for group, stored in zip(groups, pixels, strict=True):
            places = [group, dataset, *dataset.get("SharedFunctionalGroupsSequence", [])]
            found = {element.keyword: element.value for place in places for element in place.iterall()}
            values = apply_modality_lut(stored, dataset)
            if group is not dataset:
                values = stored * float(found["RescaleSlope"]) + float(found["RescaleIntercept"])
            row, column = np.reshape(found["ImageOrientationPatient"], (2, 3)).astype(float)
            between_rows, between_columns = map(float, found["PixelSpacing"])
            position = np.array(
                group.get("ImagePositionPatient") or group.PlanePositionSequence[0].ImagePositionPatient
            )
            yield values, np.stack([column * between_rows, row * between_columns], 1), position.astype(float)


def assert_is(volume: Volume, datasets: list[Dataset]) -> None:
    """Each voxel is the pixel at its place."""
    into, count = np.linalg.inv(volume.affine), 0
    for values, steps, position in frames(datasets):
        rows, columns = np.indices(values.shape)
        lps = position + np.stack([rows, columns], -1) @ steps.T
        ras = lps * (-1, -1, 1)
        index = ras @ into[:3, :3].T + into[:3, 3]
        nearest = np.rint(index).astype(int)
        assert np.abs(index - nearest).max() < 0.1
        np.testing.assert_allclose(volume.array[0][tuple(np.moveaxis(nearest, -1, 0))], values, rtol=1e-5)
        count += values.size
    assert count == volume.array[0].size


def of_part(datasets: list[Dataset], part: str) -> list[Dataset]:
    """The files of a part."""
    kind, _, value = part.partition("-")
    keyword = {"echo": "EchoNumbers", "time": "TemporalPositionIdentifier", "type": "ImageType"}[kind]
    found = [dataset for dataset in datasets if keyword in dataset]
    return [
        each
        for each in found
        if value in (str(each[keyword].value), "-".join(map(str, each[keyword].value or [])) if kind == "type" else "")
    ]


@pytest.mark.parametrize("name", [*SERVED, "19-no-series-uid"])
def test_a_folder_serves_the_pixels_at_their_places(tmp_path: Path, name: str) -> None:
    shutil.copytree(case("dicom", name), tmp_path / name)
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    assert store.image_ids() == [name]
    volume = read_volume(store.image(name).path, max_bytes=MAX)
    store.close()
    assert_is(volume, [pydicom.dcmread(file) for file in files(name)])


@pytest.mark.parametrize("name", [*SERVED, "19-no-series-uid"])
def test_the_viewer_is_shown_the_pixels_of_a_folder_at_their_places(tmp_path: Path, name: str) -> None:
    """By the frames and headers that OHIF asks for, which a series of its own is made of."""
    volume = read_volume(case("dicom", name), max_bytes=MAX)
    stack, stored = dicom_instances.stack_of(volume, name)
    dicom_instances.write(tmp_path, stack, stored)
    into, shown = np.linalg.inv(volume.affine), np.full(volume.array[0].shape, np.nan)
    for number, header in enumerate(dicom_instances.instance_datasets(stack)):
        kind = "<i2" if header.PixelRepresentation else "<u2"
        pixels = np.frombuffer(dicom_instances.frame(tmp_path, stack, number), kind).reshape(
            header.Rows, header.Columns
        )
        row, column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        between_rows, between_columns = map(float, header.PixelSpacing)
        rows, columns = np.indices(pixels.shape)
        lps = np.array(header.ImagePositionPatient, float) + rows[..., None] * column * between_rows
        ras = (lps + columns[..., None] * row * between_columns) * (-1, -1, 1)
        index = ras @ into[:3, :3].T + into[:3, 3]
        assert np.abs(index - np.rint(index)).max() < 0.02
        at = tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))
        shown[at] = pixels * float(header.RescaleSlope) + float(header.RescaleIntercept)
    step = np.ptp(volume.array[0]) / 65535 if volume.array.dtype.kind == "f" else 0
    np.testing.assert_allclose(shown, volume.array[0], atol=step + 1e-6)


@pytest.mark.parametrize("name", APART)
def test_a_folder_serves_each_volume_of_a_series(tmp_path: Path, name: str) -> None:
    shutil.copytree(case("dicom", name), tmp_path / name)
    datasets = [pydicom.dcmread(file) for file in files(name)]
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    ids = [f"{datasets[0].SeriesInstanceUID}_{part}" for part in APART[name]]
    assert store.image_ids() == ids
    for image_id, part in zip(ids, APART[name], strict=True):
        assert_is(read_volume(store.image(image_id).path, max_bytes=MAX), of_part(datasets, part))
    store.close()


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_and_the_doctor_give_the_reason_why_a_series_is_refused(tmp_path: Path, name: str) -> None:
    shutil.copytree(case("dicom", name), tmp_path / name)
    store = LocalDatastore(tmp_path, watch=False, settle=0.0)
    with pytest.raises(Unreadable, match=REFUSED[name]):
        read_volume(store.image(name).path, max_bytes=MAX)
    store.close()
    try:
        problems = dict(survey_folder(tmp_path).problems)
    except NothingReadable as error:
        problems = error.problems
    assert list(problems) == [name]
    assert REFUSED[name] in problems[name]


def in_archive(twins: Twins, name: str) -> tuple[Any, str]:
    for file in files(name):
        twins.archive.put(file.read_bytes())
    uid = str(pydicom.dcmread(files(name)[0], stop_before_pixels=True).SeriesInstanceUID)
    return twins.server(conf={"qido.Modality": "CT,MR,PT,OT,SC"}), uid


@pytest.mark.parametrize("name", SERVED)
def test_an_archive_serves_the_pixels_at_their_places_and_takes_a_segmentation_of_them(twins: Twins, name: str) -> None:
    store, uid = in_archive(twins, name)
    record = store.image(uid)
    volume = read_volume(record.path, max_bytes=MAX)
    assert_is(volume, [pydicom.dcmread(file) for file in files(name)])
    assert (NOT_STORABLE in record.info) == (name in UNSTORABLE)
    if name in UNSTORABLE:
        return
    grid = read_grid(record.path)
    array = np.zeros(grid.shape, np.uint8)
    array[tuple(slice(n // 3, n // 2 + 1) for n in grid.shape)] = 1
    array[0, 0, 0] = 2
    written = twins.folder / "seg.dcm"
    written.write_bytes(encode(Segmentation(array=array, affine=grid.affine), store.instances(uid)))
    np.testing.assert_array_equal(read_segmentation(written, grid, max_bytes=MAX).array, array)


@pytest.mark.parametrize("name", APART)
def test_an_archive_serves_each_volume_of_a_series(twins: Twins, name: str) -> None:
    store, uid = in_archive(twins, name)
    datasets = [pydicom.dcmread(file) for file in files(name)]
    with pytest.raises(Unreadable, match=f"holds {len(APART[name])} volumes"):
        store.image(uid)
    until(lambda: store.image_ids() == [f"{uid}_{part}" for part in APART[name]])
    for part in APART[name]:
        assert_is(read_volume(store.image(f"{uid}_{part}").path, max_bytes=MAX), of_part(datasets, part))


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_gives_the_reason_why_a_series_is_refused(twins: Twins, name: str) -> None:
    store, uid = in_archive(twins, name)
    for _ in range(2):
        with pytest.raises(RayappError, match=REFUSED[name]):
            store.image(uid)
