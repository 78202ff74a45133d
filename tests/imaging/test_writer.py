"""Label maps that we write, read by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import BadRequest
from rayapp.geometry import same_grid
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from tests.imaging.grids import (
    AFFINES,
    MAX,
    SHAPE,
    Affine,
    assert_same_affine,
    every_affine,
    itk_affine,
    itk_image,
    itk_voxels,
    labels,
    voxels,
)

every_ext = pytest.mark.parametrize("ext", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"])
NAMES = {"liver": 1, "left kidney": 2, "Milz (größer)": 3}


@every_ext
@every_affine
def test_simpleitk_reads_our_label_map_on_its_exact_grid(tmp_path: Path, affine: Affine, ext: str) -> None:
    path = tmp_path / f"label{ext}"
    path.write_bytes(encode_segmentation(Segmentation(array=labels(), affine=affine, names=NAMES), ext))
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(itk_voxels(image)[0], labels())
    assert_same_affine(itk_affine(image), affine)
    assert image.GetPixelID() == sitk.sitkUInt8


@every_ext
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_label_map_comes_back_whatever_its_order_in_memory(tmp_path: Path, ext: str, order: Any, dtype: Any) -> None:
    array = np.array(labels(most=250 if dtype is np.uint8 else 65535, dtype=dtype), order=order)
    path = tmp_path / f"label{ext}"
    path.write_bytes(encode_segmentation(Segmentation(array=array, affine=AFFINES["oblique"]), ext))
    found = read_segmentation(path, max_bytes=MAX)
    np.testing.assert_array_equal(found.array, array)
    assert found.array.dtype == dtype
    assert found.shape == SHAPE
    assert_same_affine(found.affine, AFFINES["oblique"])


@every_ext
@every_affine
def test_a_label_map_lies_on_the_grid_of_the_image_it_was_made_for(tmp_path: Path, affine: Affine, ext: str) -> None:
    image = tmp_path / "image.nii.gz"
    sitk.WriteImage(itk_image(voxels(), affine), str(image))
    source = read_volume(image, max_bytes=MAX)
    label = tmp_path / f"label{ext}"
    label.write_bytes(encode_segmentation(Segmentation(array=labels(), affine=source.affine), ext))
    grid = read_grid(label)
    assert same_grid(source.shape, source.affine, grid.shape, grid.affine)


def test_names_of_segments_come_back_and_stay_on_their_line(tmp_path: Path) -> None:
    path = tmp_path / "label.seg.nrrd"
    names = {**NAMES, "line\nencoding: raw\n\nbreak \\ n:=1": 4}
    path.write_bytes(encode_segmentation(Segmentation(array=labels(), affine=np.eye(4), names=names), ".seg.nrrd"))
    found = read_segmentation(path, max_bytes=MAX)
    assert found.names == names
    np.testing.assert_array_equal(found.array, labels())


def test_unpacked_nrrd_ends_in_the_raw_voxels_in_the_order_that_ohif_copies() -> None:
    data = encode_segmentation(Segmentation(array=labels(), affine=np.eye(4)), ".nrrd", compress=False)
    head, body = data.split(b"\n\n", 1)
    assert b"encoding: raw" in head
    assert body == labels().tobytes(order="F")


def test_a_wider_type_is_written_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "label.nii.gz"
    segmentation = Segmentation(array=labels(), affine=np.eye(4))
    path.write_bytes(encode_segmentation(segmentation, ".nii.gz", dtype=np.dtype(np.uint16)))
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt16
    np.testing.assert_array_equal(itk_voxels(image)[0], labels())


def test_values_that_do_not_fit_the_type_are_refused() -> None:
    segmentation = Segmentation(array=labels(most=300, dtype=np.uint16), affine=np.eye(4))
    with pytest.raises(BadRequest, match="300 does not fit"):
        encode_segmentation(segmentation, ".nrrd", dtype=np.dtype(np.uint8))


def test_another_extension_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"\.mha"):
        encode_segmentation(Segmentation(array=labels(), affine=np.eye(4)), ".mha")


def test_a_sheared_grid_comes_back_exactly(tmp_path):
    sheared = np.array([[2.0, 0.4, 0, 5], [0, 1.5, 0.3, -7], [0, 0, 3, 11], [0, 0, 0, 1]])
    file = tmp_path / "mask.nii.gz"
    mask = Segmentation(array=np.ones((3, 4, 5), np.uint8), affine=sheared)
    file.write_bytes(encode_segmentation(mask, ".nii.gz"))
    np.testing.assert_allclose(read_segmentation(file, max_bytes=1 << 20).affine, sheared, atol=1e-6)
