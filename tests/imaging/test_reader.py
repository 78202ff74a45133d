"""Damaged, hostile and plain wrong files: Unreadable or TooLarge, never another exception, never a wrong image."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import RayappError, TooLarge, Unreadable
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume, split_ext
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from tests.imaging.grids import AFFINES, MAX, itk_image, labels, voxels

every_ext = pytest.mark.parametrize("ext", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"])


def _image(path: Path) -> bytes:
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(path), useCompression="raw" not in path.name)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "image.nrrd", "raw.nrrd", "image.seg.nrrd"])
def test_a_truncated_image_is_unreadable_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = _image(path)
    read_volume(path, max_bytes=MAX)
    for cut in sorted({*range(0, len(data), 7), *range(len(data) - 12, len(data))}):
        path.write_bytes(data[:cut])
        with pytest.raises(Unreadable):
            read_volume(path, max_bytes=MAX)


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nrrd"])
def test_a_wrong_checksum_or_length_behind_the_voxels_is_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = _image(path)
    for at in range(len(data) - 8, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(Unreadable):
            read_volume(path, max_bytes=MAX)


@pytest.mark.parametrize("name", ["image.nii", "raw.nrrd"])
def test_more_voxels_than_announced_are_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_image(path) + b"\0")
    with pytest.raises(Unreadable):
        read_volume(path, max_bytes=MAX)


@pytest.mark.filterwarnings("ignore")
@every_ext
def test_flipped_bytes_give_an_image_or_a_plain_refusal(tmp_path: Path, ext: str) -> None:
    path = tmp_path / f"label{ext}"
    whole = encode_segmentation(Segmentation(array=labels(), affine=AFFINES["oblique"], names={"a": 1}), ext)
    random = np.random.default_rng(11)
    for _ in range(250):
        data = bytearray(whole)
        for at in random.integers(0, min(len(data), 500), random.integers(1, 4)):
            data[at] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            read_grid(path)
            read_segmentation(path, max_bytes=1 << 20)
        except RayappError as error:
            assert str(tmp_path) not in error.detail  # noqa: PT017


SMALL = 8 << 20
"""Bytes of voxels that `max_volume` allows in the test of what reading takes."""


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nrrd", "image.mha", "image.mhd"])
@pytest.mark.parametrize(("dtype", "slope"), [("u1", None), ("i2", 2.5), ("f4", None), ("f8", None), ("f8", 0.5)])
def test_a_small_file_that_unpacks_to_much_takes_twice_the_largest_volume_at_most(
    tmp_path: Path, name: str, dtype: str, slope: float | None
) -> None:
    """Also where values are scaled, and NaN and Inf replaced."""
    path = tmp_path / name
    per_voxel = max(np.dtype(dtype).itemsize, 4 if slope and name.endswith("gz") else 0)
    array = np.zeros((128, 64, SMALL // (128 * 64 * per_voxel)), dtype)
    if dtype.startswith("f"):
        array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    if name.endswith("gz"):
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.header.set_slope_inter(slope, 0 if slope else None)
        image.to_filename(path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    del array
    assert path.stat().st_size < SMALL // 10
    with pytest.raises(TooLarge):
        read_volume(path, max_bytes=SMALL - 1)
    tracemalloc.start()
    try:
        read_volume(path, max_bytes=SMALL)
        assert tracemalloc.get_traced_memory()[1] < 2 * SMALL + (5 << 20)  # and a piece of the file
    finally:
        tracemalloc.stop()


@every_ext
@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 1000, b"\x1f\x8b" + b"\xff" * 600, b"NRRD0004\n", b"\x5c\1\0\0" * 400, b"PK\3\4" * 300]
)
def test_garbage_is_unreadable(tmp_path: Path, ext: str, garbage: bytes) -> None:
    path = tmp_path / f"image{ext}"
    path.write_bytes(garbage)
    for read in (read_grid, lambda path: read_volume(path, max_bytes=MAX)):
        with pytest.raises(Unreadable):
            read(path)


def _bomb(ext: str) -> bytes:
    """A small file whose header announces 2 TB."""
    if ext in (".nrrd", ".seg.nrrd"):
        return (
            b"NRRD0004\ntype: uchar\ndimension: 3\nspace: LPS\nsizes: 20000 10000 10000\nencoding: gzip\n"
            b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n" + gzip.compress(bytes(1000))
        )
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape((20000, 10000, 10000))
    header.set_data_dtype(np.uint8)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    data = header.binaryblock + bytes(1004)
    return gzip.compress(data) if ext == ".nii.gz" else data


@every_ext
def test_a_header_bomb_is_too_large_and_nothing_is_allocated(tmp_path: Path, ext: str) -> None:
    path = tmp_path / f"image{ext}"
    path.write_bytes(_bomb(ext))
    tracemalloc.start()
    try:
        for read in (read_volume, read_segmentation):
            with pytest.raises(TooLarge):
                read(path, max_bytes=MAX)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ext", [".nii", ".nii.gz", ".nrrd"])
def test_the_cap_is_exact(tmp_path: Path, ext: str) -> None:
    path = tmp_path / f"image{ext}"
    _image(path)
    read_volume(path, max_bytes=voxels().nbytes)
    with pytest.raises(TooLarge):
        read_volume(path, max_bytes=voxels().nbytes - 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("row", [(np.nan, 0, 0, 0), (np.inf, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, np.nan)], ids=str)
def test_a_nifti_affine_that_is_not_sane_is_unreadable(tmp_path: Path, row: tuple[float, ...]) -> None:
    path = tmp_path / "image.nii"
    nibabel.Nifti1Image(voxels(), np.eye(4)).to_filename(path)
    data = bytearray(path.read_bytes())
    data[280:296] = np.array(row, "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(Unreadable):
        read_grid(path)


@pytest.mark.parametrize("value", [-1.0, 0.5, 65536.0, np.nan, np.inf])
def test_what_is_no_label_value_is_unreadable(tmp_path: Path, value: float) -> None:
    array = labels().astype(np.float32)
    array[2, 3, 1] = value
    path = tmp_path / "label.nii.gz"
    sitk.WriteImage(itk_image(array, AFFINES["oblique"]), str(path))
    with pytest.raises(Unreadable):
        read_segmentation(path, max_bytes=MAX)


def test_a_label_map_of_several_channels_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "label.nrrd"
    sitk.WriteImage(itk_image(np.stack([labels(), labels()]), AFFINES["oblique"]), str(path))
    with pytest.raises(Unreadable):
        read_segmentation(path, max_bytes=MAX)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("spleen_10.nii.gz", ("spleen_10", ".nii.gz")),
        ("a.b.seg.nrrd", ("a.b", ".seg.nrrd")),
        ("C:\\scans\\x.NRRD", ("x", ".nrrd")),
        ("/home/someone/y.nii", ("y", ".nii")),
    ],
)
def test_the_extension_is_split_from_the_name_alone(name: str, parts: tuple[str, str]) -> None:
    assert split_ext(name) == parts


@pytest.mark.parametrize("name", ["image.png", "image", "", ".nii.gz", "dir/.nrrd"])
def test_other_extensions_are_unreadable(name: str) -> None:
    with pytest.raises(Unreadable):
        split_ext(name)
