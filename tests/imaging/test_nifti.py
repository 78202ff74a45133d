"""NIfTI against SimpleITK: grids, every voxel, all ways to say where the voxels lie."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import Unreadable
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume
from tests.imaging.grids import (
    AFFINES,
    MAX,
    SHAPE,
    SPACING,
    Affine,
    assert_same_affine,
    assert_same_grid,
    every_affine,
    itk_affine,
    itk_image,
    itk_voxels,
    labels,
    voxels,
)
from tests.real_data import real

QFORM, SFORM = AFFINES["oblique"], AFFINES["oblique-flipped"]


def _write(
    path: Path, array: npt.NDArray[Any], *, sform: Affine | None = None, qform: Affine | None = None, endian: str = "<"
) -> Path:
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    # ITK takes the spacing from here whatever the sform says, so the two must agree for a comparison.
    header["pixdim"][1:4] = (0.5, 2.5, 4) if sform is None else np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None:
        header.set_qform(qform, code=1)
    if sform is not None:
        header.set_sform(sform, code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    data = header.binaryblock + bytes(4) + array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
@every_affine
def test_an_image_that_simpleitk_wrote_has_the_same_grid_and_every_voxel(
    tmp_path: Path, affine: Affine, ext: str
) -> None:
    path = tmp_path / f"image{ext}"
    sitk.WriteImage(itk_image(voxels(), affine), str(path))
    volume = read_volume(path, max_bytes=MAX)
    assert_same_affine(volume.affine, affine)
    assert_same_affine(read_grid(path).affine, affine)
    assert read_grid(path).shape == volume.shape == SHAPE
    np.testing.assert_array_equal(volume.array[0], voxels())
    assert volume.array.dtype == np.int16


@pytest.mark.parametrize(
    ("sform", "qform"), [(SFORM, None), (None, QFORM), (None, None), (SFORM, QFORM)], ids=["s", "q", "neither", "both"]
)
def test_the_grid_is_the_one_that_simpleitk_sees(tmp_path: Path, sform: Affine | None, qform: Affine | None) -> None:
    path = _write(tmp_path / "image.nii", voxels(), sform=sform, qform=qform)
    assert_same_grid(read_grid(path), sitk.ReadImage(str(path)))


@pytest.mark.parametrize("qcode", [0, 1, 2])
@pytest.mark.parametrize("scode", [0, 1, 2, 4])
@pytest.mark.parametrize("shear", [0.0, 0.5])
def test_of_two_affines_the_one_that_simpleitk_takes_is_taken(
    tmp_path: Path, scode: int, qcode: int, shear: float
) -> None:
    sform = AFFINES["oblique"].copy()
    sform[0, 1] += shear
    path = _write(tmp_path / "image.nii", voxels(), sform=sform, qform=AFFINES["straight"])
    data = bytearray(path.read_bytes())
    data[252:256] = np.array([qcode, scode], "<i2").tobytes()
    # ITK takes the spacing from here, whichever affine it takes.
    data[80:92] = np.array(SPACING, "<f4").tobytes()
    path.write_bytes(data)
    if shear and scode and not qcode:
        # ITK opens no sheared grid; NIfTI has a meaning for it.
        assert_same_affine(read_grid(path).affine, sform)
    else:
        assert_same_grid(read_grid(path), sitk.ReadImage(str(path)))


@pytest.mark.parametrize("units", [0, 1, 2, 3, 2 | 8])
def test_metres_and_micrometres_become_millimetres(tmp_path: Path, units: int) -> None:
    path = _write(tmp_path / "image.nii", voxels(), sform=SFORM)
    data = bytearray(path.read_bytes())
    data[123] = units
    path.write_bytes(data)
    np.testing.assert_allclose(read_grid(path).affine, itk_affine(sitk.ReadImage(str(path))), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_become_channels(tmp_path: Path, colours: int) -> None:
    array = (voxels((colours, *SHAPE)) % 251).astype(np.uint8)
    path = tmp_path / "image.nii.gz"
    names = "RGBA"[:colours]
    pixels = np.zeros(SHAPE, [(name, "u1") for name in names])
    for name, plane in zip(names, array, strict=True):
        pixels[name] = plane
    nibabel.Nifti1Image(pixels, SFORM).to_filename(path)
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array, array)
    np.testing.assert_array_equal(itk_voxels(sitk.ReadImage(str(path))), array)


def test_a_pair_of_files_is_unreadable(tmp_path: Path) -> None:
    path = _write(tmp_path / "image.nii", voxels(), sform=SFORM)
    data = bytearray(path.read_bytes())
    data[344:348] = b"ni1\0"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=r"\.hdr"):
        read_grid(path)


def test_without_codes_the_voxel_sizes_run_along_left_and_posterior(tmp_path: Path) -> None:
    affine = read_grid(_write(tmp_path / "image.nii", voxels())).affine
    np.testing.assert_array_equal(affine, np.diag([-0.5, -2.5, 4, 1]))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_every_voxel_type_and_byte_order_reads_alike(tmp_path: Path, dtype: str, endian: str) -> None:
    array = voxels(dtype=dtype) if dtype not in ("i1", "u1") else (voxels() % 100).astype(dtype)
    path = _write(tmp_path / "image.nii", array, sform=SFORM, endian=endian)
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_array_equal(volume.array, itk_voxels(sitk.ReadImage(str(path))))
    assert volume.array.dtype.isnative
    assert_same_affine(volume.affine, SFORM)


def test_a_fourth_axis_becomes_channels(tmp_path: Path) -> None:
    array = voxels((*SHAPE, 3))
    path = _write(tmp_path / "image.nii.gz", array, sform=SFORM)
    volume = read_volume(path, max_bytes=MAX)
    assert volume.channels == 3
    for channel in range(3):
        np.testing.assert_array_equal(volume.array[channel], array[..., channel])
    times = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(volume.array, times.transpose(0, 3, 2, 1))


def test_a_vector_image_of_simpleitk_becomes_channels(tmp_path: Path) -> None:
    array = voxels((3, *SHAPE), np.float32)
    path = tmp_path / "image.nii"
    sitk.WriteImage(itk_image(array, SFORM), str(path))
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array, array)


@pytest.mark.parametrize(("slope", "inter"), [(0.5, -3.25), (1, -1024), (2, 0), (0, 0)])
def test_scl_slope_and_inter_give_the_values_that_simpleitk_gives(tmp_path: Path, slope: float, inter: float) -> None:
    path = _write(tmp_path / "image.nii", voxels(), sform=SFORM)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(data)
    found = read_volume(path, max_bytes=MAX).array
    np.testing.assert_allclose(found, itk_voxels(sitk.ReadImage(str(path))), rtol=1e-6)


@pytest.mark.parametrize("stored", ["<i2", "<u2", "u1", ">i2", "<i4"])
@pytest.mark.parametrize("inter", [-1024, 7, 30_000])
def test_a_whole_intercept_leaves_whole_values_in_as_few_bytes_as_hold_them(
    tmp_path: Path, stored: str, inter: int
) -> None:
    array = np.random.default_rng(7).integers(0, 200, SHAPE).astype(stored)
    path = tmp_path / "image.nii"
    image = nibabel.Nifti1Image(array, SFORM, nibabel.Nifti1Header(endianness=">" if stored[0] == ">" else "<"))
    image.set_data_dtype(stored)
    image.to_filename(path)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([1, inter], ">f4" if stored[0] == ">" else "<f4").tobytes()
    path.write_bytes(data)
    found = read_volume(path, max_bytes=MAX).array
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, itk_voxels(sitk.ReadImage(str(path))))


@pytest.mark.parametrize(("slope", "inter"), [(0, 7), (np.nan, np.nan), (1, 0)])
def test_without_a_slope_the_stored_values_stand_in_their_own_type(tmp_path: Path, slope: float, inter: float) -> None:
    path = _write(tmp_path / "image.nii", voxels(), sform=SFORM)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(data)
    found = read_volume(path, max_bytes=MAX).array
    np.testing.assert_array_equal(found[0], voxels())
    assert found.dtype == np.int16


def test_an_image_of_one_slice_has_three_axes(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    nibabel.Nifti1Image(voxels((5, 7)), SFORM).to_filename(path)
    volume = read_volume(path, max_bytes=MAX)
    assert volume.shape == (5, 7, 1)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], voxels((5, 7)))


def test_nifti_2_reads_like_nifti_1(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    nibabel.Nifti2Image(voxels(), SFORM).to_filename(path)
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array[0], voxels())
    assert_same_affine(volume.affine, SFORM)


@pytest.mark.parametrize(
    "parts",
    [
        ("hippocampus", "imagesTr", "hippocampus_015.nii.gz"),
        ("chaos_t2", "imagesTr", "chaos_21.nii.gz"),
        ("totalseg", "example_ct_sm.nii.gz"),
    ],
    ids=lambda parts: parts[0],
)
def test_a_real_image_reads_as_simpleitk_reads_it(parts: tuple[str, ...]) -> None:
    path = real(*parts)
    image = sitk.ReadImage(str(path))
    volume = read_volume(path, max_bytes=MAX)
    assert_same_grid(read_grid(path), image)
    assert_same_affine(volume.affine, itk_affine(image))
    np.testing.assert_allclose(volume.array, itk_voxels(image), rtol=1e-6)


@pytest.mark.parametrize(
    "parts",
    [("hippocampus", "labelsTr", "hippocampus_015.nii.gz"), ("totalseg", "example_seg.nii.gz")],
    ids=lambda parts: parts[0],
)
def test_a_real_label_map_reads_as_simpleitk_reads_it(parts: tuple[str, ...]) -> None:
    path = real(*parts)
    image = sitk.ReadImage(str(path))
    found = read_segmentation(path, max_bytes=MAX)
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array, itk_voxels(image)[0])
    assert_same_affine(found.affine, itk_affine(image))


def test_label_values_in_floats_are_read_when_they_are_whole(tmp_path: Path) -> None:
    path = _write(tmp_path / "label.nii", labels(most=300, dtype=np.uint16).astype(np.float32), sform=SFORM)
    assert read_segmentation(path, max_bytes=MAX).array.dtype == np.uint16


def test_gzipped_content_under_the_name_of_plain_content_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "image.nii.gz", voxels(), sform=SFORM).rename(tmp_path / "image.nii")
    with pytest.raises(Unreadable, match=r"name the file \.nii\.gz"):
        read_grid(path)


@pytest.mark.parametrize("code", [2, 4])
@pytest.mark.parametrize("qfac", [0, 1])
def test_an_sform_and_a_qform_that_differ_by_a_lost_qfac_are_refused(tmp_path: Path, code: int, qfac: int) -> None:
    """ITK takes the sform where the codes alone would have it take the qform."""
    affine = np.array([[-1.5, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
    image.set_sform(affine, code)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "image.nii")
    np.testing.assert_allclose(read_grid(tmp_path / "image.nii").affine, affine)
    content = bytearray((tmp_path / "image.nii").read_bytes())
    content[76:80] = np.float32(qfac).tobytes()
    (tmp_path / "image.nii").write_bytes(content)
    with pytest.raises(Unreadable, match="sform and qform agree but for the direction of an axis"):
        read_grid(tmp_path / "image.nii")


@pytest.mark.parametrize("code", [1, 2])
def test_an_sform_that_is_not_finite_is_refused(tmp_path: Path, code: int) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([-1.5, 2, 3, 1]))
    image.set_qform(np.diag([-1.5, 2, 3, 1]), 1)
    image.header["sform_code"], image.header["srow_y"] = code, [0, np.nan, 0, 6]
    content = image.header.binaryblock + bytes(4) + bytes(120)
    (tmp_path / "image.nii").write_bytes(content)
    with pytest.raises(Unreadable, match="srow_x"):
        read_grid(tmp_path / "image.nii")
