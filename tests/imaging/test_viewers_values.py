"""Random types, scalings, byte orders and layouts: every voxel has the value that SimpleITK and nibabel read."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.errors import Unreadable
from rayapp.imaging.finite_values import finite_values
from rayapp.imaging.reader import read_grid, read_volume
from tests.imaging.grids import MAX, assert_same_affine

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True, scope="module")
def quiet_itk() -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)


def numbers(count: int, dtype: np.dtype[Any], seed: int) -> npt.NDArray[Any]:
    """Values over the type's whole range, with its ends."""
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        array = random.normal(0, 10.0 ** random.integers(-3, 6), count)
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        array = random.integers(low, high, count, dtype=dtype.newbyteorder("="), endpoint=True)
        array[0], array[-1] = low, high
    return array.astype(dtype)


@st.composite
def nifti_files(draw: st.DrawFn) -> tuple[bytes, bool, bool]:
    """A NIfTI file in one of the types, orders, versions and scalings that programs write; whether it is gzipped, and
    whether ITK departs from the standard by adding the intercept though there is no slope.
    """
    two, order = draw(st.booleans()), draw(st.sampled_from("<>"))
    header = (nibabel.Nifti2Header if two else nibabel.Nifti1Header)(endianness=order)
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    dtype = np.dtype(draw(st.sampled_from(TYPES))).newbyteorder(order)
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    for axis in range(len(shape) + 1, 8):
        header["dim"][axis] = draw(st.sampled_from([1, 0, 3]))
    header["pixdim"][4:] = draw(st.sampled_from([0, 1, 2.5]))
    header["scl_slope"] = draw(st.sampled_from([0, 1, 1, np.nan, 2, -0.25, 1e-3, np.inf]))
    header["scl_inter"] = draw(st.sampled_from([0, 0, -1024, 0.5, 40000]))
    header["xyzt_units"] = draw(st.sampled_from([0, 2, 10]))
    header["sform_code"] = 1
    for axis in range(3):
        header[f"srow_{'xyz'[axis]}"][axis] = 1
    header["pixdim"][1:4] = 1
    start = len(header.binaryblock)
    offset = draw(st.sampled_from([start + 4, start + 4, start + 20, start + 160]))
    header["vox_offset"], header["magic"] = offset, header.single_magic
    data = numbers(int(np.prod(shape)), dtype, draw(st.integers(0, 1000))).tobytes()
    packed = draw(st.booleans())
    content = header.binaryblock + bytes(offset - start) + data
    odd = not (np.isfinite(header["scl_slope"]) and header["scl_slope"]) and header["scl_inter"] != 0
    return (gzip.compress(content, 1) if packed else content), packed, bool(odd)


@given(nifti_files())
@many
@np.errstate(all="ignore")
def test_a_nifti_voxel_has_the_value_that_simpleitk_and_nibabel_read(file: tuple[bytes, bool, bool]) -> None:
    content, packed, odd = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("image.nii.gz" if packed else "image.nii")
        path.write_bytes(content)
        try:
            volume = read_volume(path, max_bytes=MAX)
        except Unreadable:
            return
        theirs = nibabel.load(path)
        wanted = np.asarray(theirs.dataobj)
        shape = (*theirs.shape, 1, 1)[: max(3, theirs.ndim)]
        wanted = np.moveaxis(wanted.reshape(*shape[:3], -1, order="F"), -1, 0)
        # Rescaled values are 32-bit floats here.
        scale = np.abs(wanted.astype(float)).max() or 1
        np.testing.assert_allclose(
            volume.array.astype(float), finite_values(wanted.astype(float)), atol=3e-7 * scale, rtol=0
        )
        if volume.array.dtype.kind in "iu":
            np.testing.assert_array_equal(volume.array, wanted)
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:
            return
        assert_same_affine(volume.affine, _itk_space(image))
        if image.GetNumberOfComponentsPerPixel() == 1 and not odd:
            seen = sitk.GetArrayFromImage(image).T.astype(float).ravel(order="F")
            ours = np.concatenate([channel.ravel(order="F") for channel in volume.array]).astype(float)
            np.testing.assert_allclose(ours, seen, atol=1e-6 * scale, rtol=0)


def _itk_space(image: sitk.Image) -> npt.NDArray[np.float64]:
    """The affine of the first three axes."""
    count = image.GetDimension()
    lps = np.eye(4)
    kept = min(count, 3)
    directions = np.array(image.GetDirection()).reshape(count, count) * np.array(image.GetSpacing())
    lps[:kept, :kept], lps[:kept, 3] = directions[:kept, :kept], image.GetOrigin()[:kept]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


NRRD_TYPES = {
    "u1": ["uchar", "unsigned char", "uint8", "uint8_t"],
    "i1": ["signed char", "int8", "int8_t"],
    "i2": ["short", "signed short int", "int16_t"],
    "u2": ["ushort", "unsigned short", "uint16"],
    "i4": ["int", "signed int", "int32_t"],
    "u4": ["uint", "unsigned int"],
    "i8": ["longlong", "int64"],
    "u8": ["unsigned long long", "uint64_t"],
    "f4": ["float"],
    "f8": ["double"],
}


@st.composite
def nrrd_files(draw: st.DrawFn) -> bytes:
    """An NRRD of two to four axes, one of which may hold samples, in a type and an encoding that programs write."""
    code = draw(st.sampled_from(list(NRRD_TYPES)))
    order = draw(st.sampled_from("<>"))
    dtype = np.dtype(code).newbyteorder(order)
    space = draw(st.integers(2, 3))
    samples = draw(st.sampled_from([None, None, "first", "last"]))
    sizes = draw(st.lists(st.integers(1, 5), min_size=space, max_size=space))
    kinds = ["domain"] * space
    directions = [_unit(axis, space, draw(st.sampled_from([1, -1, 0.5]))) for axis in range(space)]
    if samples:
        place = 0 if samples == "first" else space
        sizes.insert(place, draw(st.integers(1, 4)))
        kinds.insert(place, draw(st.sampled_from(["vector", "list", "???", "point", "none", "RGB-color"])))
        directions.insert(place, "none")
    fields = {"type": draw(st.sampled_from(NRRD_TYPES[code])), "dimension": len(sizes), "sizes": _line(sizes)}
    if draw(st.integers(0, 2)):
        if space == 3:
            fields["space"] = draw(st.sampled_from(["left-posterior-superior", "LPS", "right-anterior-superior"]))
        else:
            fields["space dimension"] = 2
        fields["space directions"] = _line(directions)
        fields["space origin"] = "(" + ",".join(["7", "-3", "11"][:space]) + ")"
        if draw(st.integers(0, 3)):
            fields["kinds"] = _line(kinds)
    else:
        fields["kinds"] = _line(kinds)
        if draw(st.booleans()):
            fields["spacings"] = _line("nan" if kind != "domain" else "0.5" for kind in kinds)
    if dtype.itemsize > 1 or draw(st.booleans()):
        fields["endian"] = "little" if order == "<" else "big"
    fields["encoding"] = draw(st.sampled_from(["raw", "gzip", "gz"]))
    lines = [f"{name}: {value}" for name, value in fields.items()]
    head, rest = lines[:2], draw(st.permutations(lines[2:]))
    if draw(st.booleans()):
        rest = ["# a comment", *rest, "modality:=CT", "# another: comment"]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    data = numbers(int(np.prod(sizes)), dtype, draw(st.integers(0, 1000))).tobytes()
    text = end.join([f"NRRD000{draw(st.integers(1, 5))}", *head, *rest, "", ""])
    return text.encode() + (data if fields["encoding"] == "raw" else gzip.compress(data, 1))


def _unit(axis: int, count: int, length: float) -> str:
    return "(" + ",".join(str(length if axis == other else 0) for other in range(count)) + ")"


def _line(values: Any) -> str:
    return " ".join(map(str, values))


@given(nrrd_files())
@many
@np.errstate(all="ignore")
def test_an_nrrd_voxel_has_the_value_that_simpleitk_reads(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nrrd"
        path.write_bytes(content)
        try:
            volume = read_volume(path, max_bytes=MAX)
        except Unreadable:
            return
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:
            return
        components = image.GetNumberOfComponentsPerPixel()
        array = sitk.GetArrayFromImage(image)
        array = np.moveaxis(array, -1, 0) if components > 1 else array[np.newaxis]
        seen = array.transpose(0, *range(array.ndim - 1, 0, -1))
        if image.GetDimension() == 2:
            seen = seen[..., np.newaxis]
        if image.GetDimension() == 4:
            seen = np.moveaxis(seen[0], -1, 0)
        np.testing.assert_array_equal(volume.array, seen)
        assert_same_affine(volume.affine, _itk_space(image))
        assert read_grid(path).shape == volume.shape
