"""DICOM folders against SimpleITK's series reader, which orders slices as OHIF does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rayapp.errors import TooLarge, Unreadable
from rayapp.imaging.reader import read_grid, read_volume
from tests.imaging.grids import (
    AFFINES,
    MAX,
    SHAPE,
    Affine,
    assert_same_affine,
    assert_same_grid,
    itk_affine,
    itk_voxels,
    voxels,
)
from tests.imaging.series import edit, enhanced, write_series
from tests.real_data import real

_RIGHT_HANDED = {name: affine for name, affine in AFFINES.items() if np.linalg.det(affine) > 0}


def itk_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def _assert_as_simpleitk(folder: Path) -> None:
    image, volume = itk_series(folder), read_volume(folder, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array, itk_voxels(image))
    assert_same_affine(volume.affine, itk_affine(image))
    assert_same_grid(read_grid(folder), image)


@pytest.mark.parametrize("affine", _RIGHT_HANDED.values(), ids=_RIGHT_HANDED.keys())
def test_a_shuffled_folder_reads_as_simpleitk_reads_it(tmp_path: Path, affine: Affine) -> None:
    write_series(tmp_path / "series", voxels(), affine)
    _assert_as_simpleitk(tmp_path / "series")
    volume = read_volume(tmp_path / "series", max_bytes=MAX)
    # Slices run along row x column in LPS: for a grid whose third axis does so already, nothing changed its place.
    np.testing.assert_array_equal(volume.array[0], voxels())
    assert_same_affine(volume.affine, affine)


def test_slices_written_backwards_are_turned_to_the_order_of_the_viewers(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels(), AFFINES["left-handed"])
    _assert_as_simpleitk(tmp_path / "series")
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array[0], voxels()[:, :, ::-1])


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, 0), (0.5, 3.25)])
def test_values_are_rescaled(tmp_path: Path, slope: float, intercept: float) -> None:
    write_series(tmp_path / "series", voxels(), AFFINES["oblique"], slope=slope, intercept=intercept)
    _assert_as_simpleitk(tmp_path / "series")
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0]
    np.testing.assert_allclose(found, voxels() * slope + intercept)


def test_other_files_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    (tmp_path / "series" / "README.txt").write_text("exported on a Tuesday")
    (tmp_path / "series" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert read_grid(tmp_path / "series").shape == SHAPE


@pytest.mark.parametrize(
    "fields",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"PixelSpacing": None},
        {"Columns": None},
        {"Rows": None},
        {"Columns": 6},
        {"Columns": 0},
        {"PixelSpacing": [0, 0]},
        {"PixelSpacing": ["nan", 1]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImagePositionPatient": [0, 0]},
        {"ImagePositionPatient": [0, 0, 1e9]},
        {"SeriesInstanceUID": "1.2.3"},
        {"NumberOfFrames": 3},
        {"PixelData": b"\0\0"},
        {"PixelData": None},
        {"BitsAllocated": 13},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_series_that_is_not_sane_is_unreadable(tmp_path: Path, fields: dict[str, Any]) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    edit(files[0], **fields)
    with pytest.raises(Unreadable):
        read_volume(tmp_path / "series", max_bytes=MAX)


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    files[1].unlink()
    with pytest.raises(Unreadable):
        read_grid(tmp_path / "series")


def test_two_slices_at_one_place_are_unreadable(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    (tmp_path / "series" / "again.dcm").write_bytes(files[2].read_bytes())
    edit(tmp_path / "series" / "again.dcm", ContentTime="120000")
    with pytest.raises(Unreadable):
        read_grid(tmp_path / "series")


def test_an_empty_folder_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        read_grid(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("which", [0, 1, 3])
def test_a_truncated_slice_is_never_left_out_silently(tmp_path: Path, which: int) -> None:
    file = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])[which]
    data = file.read_bytes()
    for cut in sorted({*range(0, len(data), 41), 127, 128, 131, 132, 133, len(data) - 1}):
        file.write_bytes(data[:cut])
        with pytest.raises(Unreadable):
            read_volume(tmp_path / "series", max_bytes=MAX)


def test_a_series_over_the_cap_is_too_large_before_its_voxels_are_read(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    for file in files:
        edit(file, Rows=65535, Columns=65535)
    with pytest.raises(TooLarge):
        read_volume(tmp_path / "series", max_bytes=MAX)


@pytest.mark.parametrize(
    "parts",
    [
        ("dicom_mr", "hippocrop_1"),
        pytest.param(("totalseg", "example_ct_dicom"), marks=pytest.mark.slow),
        ("dcmqi_seg", "ct-3slice"),
    ],
    ids="/".join,
)
def test_a_real_series_reads_as_simpleitk_reads_it(parts: tuple[str, ...]) -> None:
    _assert_as_simpleitk(real(*parts))


@pytest.mark.parametrize("name", ["oblique", "left-handed"])
def test_an_enhanced_object_reads_like_its_slices(tmp_path: Path, name: str) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES[name], intercept=-1024)
    wanted = read_volume(tmp_path / "series", max_bytes=MAX)
    found = read_volume(enhanced(tmp_path / "enhanced", files), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, wanted.array)
    np.testing.assert_array_equal(found.affine, wanted.affine)
    assert found.array.dtype == wanted.array.dtype == np.int16


def test_frames_without_positions_are_unreadable(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    file = enhanced(tmp_path / "enhanced", files) / "enhanced.dcm"
    edit(file, PerFrameFunctionalGroupsSequence=None)
    with pytest.raises(Unreadable, match="multi-frame"):
        read_volume(file.parent, max_bytes=MAX)


def _transcode(file: Path, syntax: int) -> None:
    """Store the file's pixels in another transfer syntax, by GDCM."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


_SYNTAXES = {
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEGLosslessSV1),
    "JPEG-LS": (gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless),
    "JPEG 2000": (gdcm.TransferSyntax.JPEG2000Lossless, JPEG2000Lossless),
    "RLE": (gdcm.TransferSyntax.RLELossless, RLELossless),
}


@pytest.mark.parametrize(("syntax", "uid"), _SYNTAXES.values(), ids=_SYNTAXES.keys())
def test_compressed_slices_read_like_plain_ones(tmp_path: Path, syntax: int, uid: str) -> None:
    files = write_series(tmp_path / "series", voxels((16, 12, 3)), AFFINES["oblique"])
    for file in files[1:]:  # a series may be of both kinds
        _transcode(file, syntax)
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == uid
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array[0], voxels((16, 12, 3)))


@pytest.mark.parametrize("kind", ["JPEGBaselineProcess1", "JPEG2000", "JPEGLSNearLossless"])
def test_lossy_slices_read_as_simpleitk_reads_them(tmp_path: Path, kind: str) -> None:
    smooth = (np.add.outer(np.add.outer(np.arange(40) * 3, np.arange(32)), np.arange(3) * 20)).astype(np.int16)
    files = write_series(tmp_path / "series", smooth, AFFINES["oblique"])
    for file in files:
        bytes_ = pydicom.dcmread(file).pixel_array.astype(np.uint8).tobytes()
        edit(file, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=bytes_)
        _transcode(file, getattr(gdcm.TransferSyntax, kind))
    _assert_as_simpleitk(tmp_path / "series")
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0].astype(int)
    assert np.abs(found - smooth).max() <= 8


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    file = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])[0]
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    with pytest.raises(Unreadable, match="TransferSyntaxUID: deflated"):
        read_volume(tmp_path / "series", max_bytes=MAX)


def test_big_endian_files_read_like_little_endian_ones(tmp_path: Path) -> None:
    for file in write_series(tmp_path / "series", voxels(), AFFINES["oblique"], intercept=-1024):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0]
    np.testing.assert_array_equal(found, voxels() - 1024)
    assert found.dtype == np.dtype("=i2")


@pytest.mark.parametrize(("intercept", "dtype"), [(0, np.int16), (-1024, np.int16), (32760, np.int32)])
def test_whole_intercepts_keep_whole_values_in_a_type_that_holds_them(
    tmp_path: Path, intercept: int, dtype: type
) -> None:
    write_series(tmp_path / "series", voxels(), AFFINES["oblique"], intercept=intercept)
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0]
    np.testing.assert_array_equal(found, voxels().astype(int) + intercept)
    assert found.dtype == dtype


def test_slices_rescaled_each_in_its_own_way_are_floats(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    edit(files[1], RescaleSlope=2.5)
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0]
    wanted = voxels().astype(np.float32)
    wanted[:, :, 1] *= 2.5
    np.testing.assert_array_equal(found, wanted)


def test_colour_slices_become_channels(tmp_path: Path) -> None:
    array = (voxels((3, *SHAPE)) % 251).astype(np.uint8)
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    for k, file in enumerate(files):
        edit(
            file,
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            PixelData=array[:, :, :, k].tobytes(order="F") + bytes(1),
        )
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array, array)


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    sheared = AFFINES["straight"] @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_series(tmp_path / "series", voxels(), sheared)
    with pytest.raises(Unreadable, match="tilt"):
        read_volume(tmp_path / "series", max_bytes=MAX)


@pytest.mark.parametrize(
    ("modality", "kind"), [("SR", "88.33"), ("DOC", "104.1"), ("RTSTRUCT", "481.3"), ("SEG", "66.4")]
)
def test_reports_and_structures_beside_the_slices_are_passed_over(tmp_path: Path, modality: str, kind: str) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    report = pydicom.dcmread(files[0])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
    report.Modality, report.SeriesInstanceUID = modality, "1.2.3.99"
    if modality != "SEG":
        for field in ("Rows", "Columns", "PixelData", "ImagePositionPatient"):
            del report[field]
    report.save_as(tmp_path / "series" / "report.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array[0], voxels())


@pytest.mark.parametrize("first", [-100, 0, 20])
def test_values_go_through_the_modality_lut_as_pydicom_sends_them(tmp_path: Path, first: int) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [100, first, 16])
    item.add_new("LUTData", "US", [int(n) for n in np.random.default_rng(1).integers(0, 4000, 100)])
    item.ModalityLUTType = "US"
    for file in files:
        edit(file, RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[item])
    datasets = [pydicom.dcmread(file) for file in files]
    wanted = np.stack([pydicom.pixels.apply_modality_lut(each.pixel_array, each).T for each in datasets], axis=-1)
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array[0], wanted)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "ImageType says MOSAIC"),
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"FrameOfReferenceUID": "1.2.3.4"}, "FrameOfReferenceUID"),
        ({"PixelData": None}, "no PixelData"),
        ({"PixelData": b"\0\0"}, "PixelData is truncated"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_attribute(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    edit(files[1], **fields)
    with pytest.raises(Unreadable, match=reason):
        read_volume(tmp_path / "series", max_bytes=MAX)


def test_slices_each_in_a_frame_of_reference_of_its_own_are_one_volume(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    for number, file in enumerate(files):
        edit(file, FrameOfReferenceUID=f"1.2.3.{number}")
    np.testing.assert_array_equal(read_volume(tmp_path / "series", max_bytes=MAX).array[0], voxels())
