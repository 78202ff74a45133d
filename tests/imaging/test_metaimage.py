"""MetaImage as ITK writes and reads it: every type, order, transform and way to store the voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import TooLarge, Unreadable
from rayapp.imaging import metaimage
from rayapp.imaging.reader import data_file, read_grid, read_segmentation, read_volume
from tests.imaging.grids import AFFINES, MAX, assert_same_grid, every_affine, itk_image, itk_voxels, labels, voxels

FIELDS = "ObjectType = Image\nNDims = 3\nDimSize = 3 4 5\nElementType = MET_SHORT\n"
VOXELS = np.arange(60, dtype="<i2")
TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]


def write(path: Path, more: str = "", *, fields: str = FIELDS, data: str = "LOCAL", behind: bytes = b"") -> Path:
    path.write_bytes(f"{fields}{more}ElementDataFile = {data}\n".encode() + (behind or VOXELS.tobytes()))
    return path


@every_affine
@pytest.mark.parametrize("name", ["image.mha", "image.mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path: Path, affine, name: str, packed: bool) -> None:
    path = tmp_path / name
    sitk.WriteImage(itk_image(voxels(), affine), str(path), useCompression=packed)
    image = sitk.ReadImage(str(path))
    volume = read_volume(path, max_bytes=MAX)
    assert_same_grid(read_grid(path), image)
    np.testing.assert_array_equal(volume.array, itk_voxels(image))
    assert (data_file(path) is None) == (name == "image.mha")
    read_volume(path.rename(tmp_path / name.upper()), max_bytes=MAX)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("big", [False, True])
def test_every_element_type_is_read_in_either_byte_order(tmp_path: Path, dtype, big: bool) -> None:
    path = tmp_path / "image.mha"
    array = voxels((3, 4, 5), np.int32).astype(dtype)
    sitk.WriteImage(itk_image(array, AFFINES["oblique"]), str(path))
    if big:
        head, _, _ = path.read_bytes().partition(b"LOCAL\n")
        head = head.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True") + b"LOCAL\n"
        path.write_bytes(head + array.T.astype(array.dtype.newbyteorder(">")).tobytes())
    found = read_volume(path, max_bytes=MAX).array
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], array)
    np.testing.assert_array_equal(found, itk_voxels(sitk.ReadImage(str(path))))


def test_channels_and_a_fourth_axis_become_channels(tmp_path: Path) -> None:
    path = tmp_path / "image.mha"
    array = voxels((2, 3, 4, 5))
    sitk.WriteImage(itk_image(array, AFFINES["oblique"]), str(path))
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array, array)
    sitk.WriteImage(sitk.JoinSeries([itk_image(each, AFFINES["oblique"]) for each in array]), str(path))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, AFFINES["oblique"], atol=1e-4)


def test_a_plane_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    path = tmp_path / "image.mha"
    sitk.WriteImage(itk_image(voxels(), AFFINES["straight"])[:, :, 2], str(path))
    assert read_grid(path).shape == (5, 7, 1)
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array[0, ..., 0], voxels()[..., 2])


def test_a_label_map_is_read(tmp_path: Path) -> None:
    path = tmp_path / "label.mha"
    sitk.WriteImage(itk_image(labels(), AFFINES["oblique"]), str(path), useCompression=True)
    np.testing.assert_array_equal(read_segmentation(path, max_bytes=MAX).array, labels())


@pytest.mark.parametrize("name", ["voxels.raw", "my voxels.raw", "voxels.zraw"])
def test_the_voxels_may_have_any_name_beside_the_header(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "image.mhd", data=name, behind=b"\n")
    with pytest.raises(Unreadable, match="beside its header" if " " not in name else "several files"):
        data_file(path)
    (tmp_path / name).write_bytes(VOXELS.tobytes())
    if " " not in name:
        np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array.ravel(order="F"), VOXELS)
        assert data_file(path) == tmp_path / name


@pytest.mark.parametrize("name", ["../voxels.raw", "/etc/passwd", "sub/voxels.raw", "sub\\voxels.raw", ".", "..", ""])
def test_voxels_in_another_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "voxels.raw").write_bytes(VOXELS.tobytes())
    path = write(tmp_path / "in" / "image.mhd", data=name, behind=b"\n")
    with pytest.raises(Unreadable) as refusal:
        read_volume(path, max_bytes=MAX)
    assert str(tmp_path) not in str(refusal.value)


def test_a_link_finds_its_voxels_beside_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "image.mhd", data="image.raw", behind=b"\n")
    (tmp_path / "store" / "image.raw").write_bytes(VOXELS.tobytes())
    link = tmp_path / "other.mhd"
    link.symlink_to(tmp_path / "store" / "image.mhd")
    np.testing.assert_array_equal(read_volume(link, max_bytes=MAX).array.ravel(order="F"), VOXELS)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("BinaryData = False\n", "text"),
        ("HeaderSize = 2\n", "HeaderSize"),
        ("DistanceUnits = um\n", "um"),
        ("ElementSpacing = 1 0 3\n", "invertible"),
        ("ElementSpacing = 1 nan 3\n", "finite"),
        ("ElementSpacing = 1 2\n", "damaged"),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 0\n", "invertible"),
        ("ElementNumberOfChannels = 0\n", "channels"),
        ("BinaryDataByteOrderMSB = True\nElementByteOrderMSB = False\n", "contradicts"),
    ],
)
def test_what_viewers_read_differently_or_not_at_all_is_refused(tmp_path: Path, more: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_volume(write(tmp_path / "image.mha", more), max_bytes=MAX)


@pytest.mark.parametrize("data", ["LIST", "slice%03d.raw 1 5 1", "%d.raw"])
def test_slices_in_several_files_are_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(Unreadable, match="several files"):
        read_grid(write(tmp_path / "image.mhd", data=data))


def test_a_header_that_disagrees_with_its_extension_says_what_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"name it \.mha"):
        read_grid(write(tmp_path / "image.mhd"))
    with pytest.raises(Unreadable, match=r"name it \.mhd"):
        read_grid(write(tmp_path / "image.mha", data="image.raw"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_or_damaged_file_is_unreadable_wherever_it_is_cut(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "image.mha"
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(path), useCompression=packed)
    data = path.read_bytes()
    for cut in sorted({*range(0, len(data), 7), *range(len(data) - 12, len(data))}):
        path.write_bytes(data[:cut])
        with pytest.raises(Unreadable):
            read_volume(path, max_bytes=MAX)
    path.write_bytes(data + b"\0")
    with pytest.raises(Unreadable):
        read_volume(path, max_bytes=MAX)


def test_the_size_is_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    path = write(tmp_path / "image.mha", fields=FIELDS.replace("3 4 5", "30000 40000 50000"))
    with pytest.raises(TooLarge, match="max_volume"):
        read_volume(path, max_bytes=MAX)


def test_other_objects_and_odd_spellings(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="Tube"):
        read_grid(write(tmp_path / "tube.mha", fields=FIELDS.replace("Image", "Tube")))
    for fields in (FIELDS.replace("\n", "\r\n"), FIELDS.replace(" = ", ": "), "Comment = Größe\n" + FIELDS):
        path = write(tmp_path / "image.mha", fields=fields)
        np.testing.assert_array_equal(metaimage.read_volume(path, max_bytes=MAX).array.ravel(order="F"), VOXELS)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).ravel(), VOXELS)
