"""Random headers: an image lies where SimpleITK, and so 3D Slicer, sees it, or is refused; a mask lies on its image."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.errors import Unreadable
from rayapp.geometry import index_to_mm, is_orthogonal
from rayapp.imaging.placement import read_label_map
from rayapp.imaging.reader import read_grid, read_volume
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.imaging.writer import encode_segmentation
from tests.imaging.grids import MAX, Affine, itk_affine
from tests.imaging.series import edit, write_series

SHAPE = (3, 4, 5)
VOXELS = np.arange(60, dtype="<i2")
CORNERS = [(i, j, k) for i in (0, 2) for j in (0, 3) for k in (0, 4)]
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.lists(st.floats(0.2, 4).map(lambda size: round(size, 4)), min_size=3, max_size=3)
places = st.lists(st.floats(-100, 100).map(lambda place: round(place, 3)), min_size=3, max_size=3)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def quiet_itk() -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)


def rotation(seed: int) -> Affine:
    """Orthonormal, left- or right-handed."""
    turned: Affine = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return turned


def itk_grid(path: Path) -> Affine | None:
    """The file's grid as SimpleITK reads it; None if it cannot open the file."""
    try:
        return itk_affine(sitk.ReadImage(str(path)))
    except RuntimeError:
        return None


def assert_lies_where_itk_puts_it(path: Path) -> Grid | None:
    """Compare the corners. Returns the grid, None if the file was refused."""
    try:
        grid = read_grid(path)
    except Unreadable:
        return None
    assert grid.shape == SHAPE
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array.ravel(order="F"), VOXELS)
    theirs = itk_grid(path)
    if theirs is not None:
        unit = np.abs(theirs[:3, :3]).max()
        np.testing.assert_allclose(
            index_to_mm(grid.affine, CORNERS) / unit, index_to_mm(theirs, CORNERS) / unit, atol=2e-3
        )
    return grid


@st.composite
def nifti_headers(draw: st.DrawFn) -> nibabel.Nifti1Header:
    """Headers with whatever programs leave in the fields that place an image."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header["pixdim"][0] = draw(st.sampled_from([1, -1, 0, 0.5, -3]))
    header["pixdim"][1:4] = draw(sizes)
    odd = draw(st.sampled_from([None, 0, -1.5, np.nan, np.inf]))
    if odd is not None:
        header["pixdim"][draw(st.integers(1, 3))] = odd
    vector = rotation(draw(seeds))[0] * draw(st.sampled_from([0, 0.3, 0.9, 1, 1 + 1e-7, 1 + 1e-6, 1.001]))
    for letter, number in zip("bcd", np.round(vector, draw(st.sampled_from([2, 4, 9]))), strict=True):
        header[f"quatern_{letter}"] = number
    for axis, place in zip("xyz", draw(places), strict=True):
        header[f"qoffset_{axis}"] = place
    columns = rotation(draw(seeds)) * (header["pixdim"][1:4] if draw(st.booleans()) else draw(sizes))
    columns[0, 1] += draw(st.sampled_from([0, 0, 0, 1e-5, 1e-3, 0.3]))
    for axis, row, place in zip("xyz", np.round(columns, draw(st.sampled_from([3, 9]))), draw(places), strict=True):
        header[f"srow_{axis}"] = [*row, place]
    header["qform_code"], header["sform_code"] = (
        draw(st.sampled_from([0, 1, 2, 4])),
        draw(st.sampled_from([0, 1, 2, 4])),
    )
    if draw(st.integers(0, 3)) == 0:  # both alike, but for the direction of axes, rounding or a number that is none
        vector = [float(header[f"quatern_{letter}"]) for letter in "bcd"]
        sized = np.isfinite(header["pixdim"]).all() and (header["pixdim"][1:4] > 0).all()
        sound = sized and abs(header["pixdim"][0]) == 1 and np.linalg.norm(vector) < 0.99
        alike = header.get_qform() if sound else np.eye(4)
        alike[:3, :3] *= draw(st.sampled_from([(1, 1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, 1), (1, -1, 1 + 1e-5)]))
        alike[draw(st.integers(0, 2)), draw(st.integers(0, 3))] += draw(st.sampled_from([0, 0, 1e-5, 0.01, np.nan]))
        for axis, row in zip("xyz", alike, strict=False):
            header[f"srow_{axis}"] = row
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 10]))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header


@given(nifti_headers())
@many
def test_a_nifti_image_lies_where_simpleitk_puts_it(header: nibabel.Nifti1Header) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii"
        path.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes())
        grid = assert_lies_where_itk_puts_it(path)
        if grid is not None:
            _assert_a_mask_lies_on(grid, path)


def _assert_a_mask_lies_on(grid: Grid, image: Path) -> None:
    """In SimpleITK, where it opens the image; and in nibabel, which has one meaning for what is written here."""
    theirs = itk_grid(image)
    mask = Segmentation(array=np.asarray(VOXELS.reshape(SHAPE, order="F") % 5, np.uint8), affine=grid.affine)
    for ext in (".nii", ".nrrd", ".seg.nrrd"):
        path = image.with_name(f"mask{ext}")
        path.write_bytes(encode_segmentation(mask, ext))
        np.testing.assert_array_equal(read_label_map(path, grid, max_bytes=MAX).array, mask.array)
        if theirs is not None:
            seen = itk_grid(path)
            assert seen is not None
            unit = np.abs(theirs[:3, :3]).max()
            np.testing.assert_allclose(
                index_to_mm(seen, CORNERS) / unit, index_to_mm(theirs, CORNERS) / unit, atol=2e-3
            )
    found = nibabel.load(image.with_name("mask.nii")).affine
    np.testing.assert_allclose(found, grid.affine, rtol=1e-5, atol=1e-4 * np.abs(grid.affine).max())


@given(nifti_headers())
@many
def test_a_label_that_itk_exports_for_an_image_is_accepted(header: nibabel.Nifti1Header) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii"
        path.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes())
        try:
            grid = read_grid(path)
            image = sitk.ReadImage(str(path))
        except (Unreadable, RuntimeError):
            return
        for ext in (".nii.gz", ".nrrd"):
            label = sitk.Cast(image > 5, sitk.sitkUInt8)
            exported = path.with_name(f"label{ext}")
            sitk.WriteImage(label, str(exported))
            np.testing.assert_array_equal(
                read_label_map(exported, grid, max_bytes=MAX).array, sitk.GetArrayFromImage(label).T
            )


def _vector(numbers: Any) -> str:
    return "(" + ",".join(repr(float(number)) for number in numbers) + ")"


@st.composite
def nrrd_headers(draw: st.DrawFn) -> bytes:
    """Headers that place an image by a space, by spacings, by axis mins and maxs, or not at all."""
    fields = {"type": "short", "dimension": "3", "sizes": "3 4 5", "endian": "little", "encoding": "raw"}
    spaces = [None, "left-posterior-superior", "RAS", "LAS", "scanner-xyz", "3D-left-handed"]
    if (space := draw(st.sampled_from(spaces))) is not None:
        fields["space"] = space
        if draw(st.booleans()):
            fields["space origin"] = _vector(draw(places))
        if draw(st.integers(0, 3)):
            columns = rotation(draw(seeds)) * draw(sizes)
            fields["space directions"] = " ".join(_vector(columns[:, axis]) for axis in range(3))
        if draw(st.booleans()):
            fields["measurement frame"] = "(0,1,0) (1,0,0) (0,0,1)"
    if "space directions" not in fields:
        signs = draw(st.sampled_from([(1, 1, 1), (1, -1, 1), (np.nan, 1, 1), (1, 1, 0)]))
        for name, numbers in (
            ("spacings", np.multiply(draw(sizes), signs)),
            ("axis mins", np.add(draw(places), draw(st.sampled_from([0, 0, np.nan])))),
            ("axis maxs", np.add(draw(places), 200)),
        ):
            if draw(st.booleans()):
                fields[name] = " ".join(repr(float(number)) for number in numbers)
        centers = draw(st.sampled_from([None, "cell cell cell", "node node node", "cell node ???"]))
        if centers is not None:
            fields[draw(st.sampled_from(["centers", "centerings"]))] = centers
    if draw(st.booleans()):
        fields["kinds"] = draw(st.sampled_from(["domain domain domain", "space space space", "??? ??? ???"]))
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    return f"NRRD0005\n# Größe\n{text}note:=Läsion\n\n".encode(draw(st.sampled_from(["utf-8", "latin-1"])))


@given(nrrd_headers())
@many
def test_an_nrrd_image_lies_where_simpleitk_puts_it(header: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nrrd"
        path.write_bytes(header + VOXELS.tobytes())
        grid = assert_lies_where_itk_puts_it(path)
        if grid is not None:
            assert itk_grid(path) is not None
            _assert_a_mask_lies_on(grid, path)


@st.composite
def metaimage_headers(draw: st.DrawFn) -> str:
    """Headers with each way of placing an image, numbers of either sign, and fields that do not count."""
    fields = {"ObjectType": "Image", "NDims": "3", "DimSize": "3 4 5", "ElementType": "MET_SHORT"}
    columns = rotation(draw(seeds))
    columns[0] *= draw(st.sampled_from([1, 1, 1, 2, 0.5]))
    columns[1, 0] += draw(st.sampled_from([0, 0, 1e-5, 0.3]))
    signs = draw(st.sampled_from([(1, 1, 1), (1, -1, 1), (1, 1, 0), (np.nan, 1, 1)]))
    rows = draw(st.sampled_from(["TransformMatrix", "Rotation", "Orientation"]))
    for name, numbers in (
        (rows, columns.ravel()),
        (draw(st.sampled_from(["Offset", "Position", "Origin"])), draw(places)),
        ("ElementSpacing", np.multiply(draw(sizes), signs)),
        ("ElementSize", draw(sizes)),
        ("CenterOfRotation", draw(places)),
    ):
        if draw(st.integers(0, 3)):
            fields[name] = " ".join(f"{float(number):.9g}" for number in numbers)
    if draw(st.booleans()):
        fields["AnatomicalOrientation"] = draw(st.sampled_from(["RAI", "LPS", "???"]))
    separator, end = draw(st.sampled_from([" = ", " : ", "="])), draw(st.sampled_from(["\n", "\r\n"]))
    return "".join(f"{name}{separator}{value}{end}" for name, value in fields.items())


@given(metaimage_headers(), st.booleans(), st.booleans(), st.booleans())
@many
def test_a_metaimage_lies_where_simpleitk_puts_it(header: str, detached: bool, packed: bool, big: bool) -> None:
    data = VOXELS.astype(">i2" if big else "<i2").tobytes()
    data = zlib.compress(data) if packed else data
    size = f"CompressedDataSize = {len(data)}\n" if packed else ""
    head = f"{header}BinaryDataByteOrderMSB = {big}\nCompressedData = {packed}\n{size}ElementDataFile = "
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("image.mhd" if detached else "image.mha")
        path.write_bytes(f"{head}{'image.raw' if detached else 'LOCAL'}\n".encode())
        with (path.with_name("image.raw") if detached else path).open("ab") as file:
            file.write(data)
        grid = assert_lies_where_itk_puts_it(path)
        if grid is not None:
            assert itk_grid(path) is not None
            if is_orthogonal(grid.affine):  # ITK opens no NIfTI mask on other axes
                _assert_a_mask_lies_on(grid, path)


@given(nifti_headers())
@many
def test_a_nifti_pair_lies_where_simpleitk_puts_it(header: nibabel.Nifti1Header) -> None:
    header["magic"], header["vox_offset"] = b"ni1", 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.hdr"
        path.write_bytes(header.binaryblock)
        path.with_name("image.img").write_bytes(VOXELS.tobytes())
        assert_lies_where_itk_puts_it(path)


@given(nrrd_headers())
@many
def test_an_nrrd_with_a_detached_header_lies_where_simpleitk_puts_it(header: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nhdr"
        path.write_bytes(header.rstrip(b"\n") + b"\ndata file: image.raw\n")
        path.with_name("image.raw").write_bytes(VOXELS.tobytes())
        if assert_lies_where_itk_puts_it(path) is not None:
            assert itk_grid(path) is not None


@given(seeds, sizes, places, st.integers(2, 9), st.sampled_from([None, -2.5, 40]), st.booleans())
@settings(parent=many, max_examples=12)
def test_a_dicom_series_lies_where_simpleitk_puts_it(
    seed: int, edges: list[float], place: list[float], digits: int, between: float | None, thick: bool
) -> None:
    """Whatever instance numbers, thickness and SpacingBetweenSlices say, and however positions are rounded."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed)
    affine[:3, :3] *= np.sign(np.linalg.det(affine[:3, :3])) * np.array(edges)
    affine[:3, 3] = place
    with tempfile.TemporaryDirectory() as folder:
        series = Path(folder) / "series"
        for file in write_series(series, VOXELS.reshape(SHAPE, order="F"), affine):
            position = [round(float(number), digits) for number in pydicom.dcmread(file).ImagePositionPatient]
            edit(file, ImagePositionPatient=position, SliceThickness=9 if thick else edges[2])
            if between is not None:
                edit(file, SpacingBetweenSlices=between)
        try:
            volume = read_volume(series, max_bytes=MAX)
        except Unreadable:
            assert digits < 4  # only rounding may make a stack look uneven or tilted
            return
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
        image = reader.Execute()
        np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image).T)
        rounding = 10.0**-digits
        np.testing.assert_allclose(
            index_to_mm(volume.affine, CORNERS), index_to_mm(itk_affine(image), CORNERS), atol=1e-3 + 4 * rounding
        )
