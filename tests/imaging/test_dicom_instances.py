"""Images as DICOM series: read back by SimpleITK and by our own reader, every voxel is where it was."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from rayapp.errors import Unreadable
from rayapp.geometry import index_to_mm
from rayapp.imaging import dicom_instances
from rayapp.imaging.dicom_instances import frame, instance_datasets, stack_of, uid_of
from rayapp.imaging.reader import read_volume
from rayapp.imaging.volume import Volume
from tests.imaging.grids import AFFINES, MAX, SHAPE, Affine, every_affine, itk_affine, itk_voxels, turned, voxels
from tests.imaging.test_dicom_series import itk_series


def written(folder: Path, volume: Volume, image_id: str = "torso_1") -> Path:
    """The folder of DICOM files that hold what is served for the volume."""
    kept, files = folder / "kept", folder / "files"
    kept.mkdir()
    files.mkdir()
    stack, stored = stack_of(volume, image_id)
    dicom_instances.write(kept, stack, stored)
    stack = dicom_instances.read(kept)
    for number, dataset in enumerate(instance_datasets(stack)):
        whole = Dataset(dataset)
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
        whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID
        whole.PixelData = frame(kept, stack, number)
        whole.save_as(files / f"{stack.shape[2] - number}.dcm", enforce_file_format=True)
    return files


@every_affine
def test_every_voxel_keeps_its_place_and_its_value(tmp_path: Path, affine: Affine):
    volume = Volume(array=voxels()[None], affine=affine)
    stack, _ = stack_of(volume, "torso_1")
    files = written(tmp_path, volume)
    flipped = np.linalg.det(affine) < 0
    assert stack.flipped == flipped
    expected = volume.array[0][:, :, ::-1] if flipped else volume.array[0]
    image = itk_series(files)
    np.testing.assert_array_equal(itk_voxels(image)[0], expected)
    np.testing.assert_array_equal(read_volume(files, max_bytes=MAX).array[0], expected)
    # The image's own corner is where it was, in the series' count of slices.
    corner = np.array([1, 2, 3])
    counted = corner * [1, 1, -1] + [0, 0, SHAPE[2] - 1] if flipped else corner
    np.testing.assert_allclose(index_to_mm(itk_affine(image), counted), index_to_mm(affine, corner), atol=1e-6)


def test_the_file_that_is_kept_is_the_series_as_an_image(tmp_path: Path):
    volume = Volume(array=voxels()[None], affine=AFFINES["left-handed"])
    stack, stored = stack_of(volume, "x")
    dicom_instances.write(tmp_path, stack, stored)
    kept = read_volume(tmp_path / dicom_instances.VOXELS, max_bytes=MAX)
    np.testing.assert_array_equal(kept.array[0], volume.array[0][:, :, ::-1])
    np.testing.assert_allclose(kept.affine, stack.grid.affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "exact"),
    [
        (voxels().astype(np.float32) - 1000, True),
        (voxels(dtype=np.uint16) + np.uint16(60000), True),
        (voxels().astype(np.int32) - 5, True),
        (voxels().astype(np.int32) * 1000, False),
        (np.random.default_rng(3).normal(0, 1e-3, SHAPE), False),
        (np.full(SHAPE, 0.25), True),
        (np.where(voxels() == 3, np.nan, voxels() / 7), False),
    ],
    ids=["whole floats", "high unsigned", "narrow int32", "wide int32", "small floats", "constant", "with NaN"],
)
def test_values_are_exact_in_16_bits_or_within_half_a_step(tmp_path: Path, array: np.ndarray, exact: bool):
    files = written(tmp_path, Volume(array=array[None], affine=AFFINES["oblique"]))
    finite = np.nan_to_num(array, nan=np.nanmin(array))
    step = 1e-9 if exact else np.ptp(finite) / 65535
    shown = read_volume(files, max_bytes=MAX).array[0]
    np.testing.assert_allclose(shown, finite, atol=step * 0.51 + np.abs(finite).max() * 1e-6, rtol=0)


def test_every_slice_is_valid_json_and_dicom(tmp_path: Path):
    stack, _ = stack_of(Volume(array=voxels()[None] - np.int16(1024), affine=AFFINES["oblique"]), "ct_ü")
    datasets = instance_datasets(stack)
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == SHAPE[2]
    for dataset in datasets:
        again = Dataset.from_json(dataset.to_json())
        assert again == dataset
        assert all(UID(dataset[name].value).is_valid for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    assert str(datasets[0].PatientName) == "ct_ü"
    assert datasets[0].Modality == "CT"  # air is there


def test_uids_are_the_same_everywhere_and_differ_by_image_level_and_slice():
    assert uid_of("series", "torso_1") == (
        "1.2.826.0.1.3680043.8.498.89337509107656329180996329129866039570"
    )  # written down: a change would orphan annotators' bookmarks
    given = [("study", "a", 0), ("series", "a", 0), ("instance", "a", 0), ("instance", "a", 1), ("instance", "a1", 0)]
    assert len({uid_of(*one) for one in given}) == len(given)  # type: ignore[arg-type]


def test_a_sheared_grid_is_refused_in_words():
    sheared = turned((0, 0, 0))
    sheared[0, 1] = 0.5
    with pytest.raises(Unreadable, match="shear"):
        stack_of(Volume(array=voxels()[None], affine=sheared), "x")
