"""Headers with their voxels in another file: `.nhdr`, and pairs of `.hdr` and `.img`, as ITK and nibabel write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import Unreadable
from rayapp.imaging.reader import data_file, read_grid, read_volume
from tests.imaging.grids import AFFINES, MAX, assert_same_affine, assert_same_grid, every_affine, itk_image, voxels


@every_affine
@pytest.mark.parametrize("name", ["image.nhdr", "image.hdr"])
def test_what_itk_writes_in_two_files_is_read_as_itk_reads_it(tmp_path: Path, affine, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(itk_image(voxels(), affine), str(path))
    assert_same_grid(read_grid(path), sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array[0], voxels())
    other = data_file(path)
    assert other is not None
    assert {other, path} == set(tmp_path.iterdir())


@every_affine
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_read_as_nibabel_reads_it(tmp_path: Path, affine, kind) -> None:
    image = kind(voxels(), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / "image.hdr")
    assert_same_affine(read_grid(tmp_path / "image.hdr").affine, nibabel.load(tmp_path / "image.hdr").affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "image.hdr", max_bytes=MAX).array[0], voxels())


@pytest.mark.parametrize("voxels_ext", [".img", ".img.gz", ".IMG"])
def test_the_voxels_of_a_pair_are_found_in_any_case_and_gzipped(tmp_path: Path, voxels_ext: str) -> None:
    nibabel.Nifti1Pair(voxels(), AFFINES["oblique"]).to_filename(tmp_path / "image.hdr")
    data = (tmp_path / "image.img").read_bytes()
    (tmp_path / "image.img").unlink()
    with pytest.raises(Unreadable, match=r"image\.img"):
        data_file(tmp_path / "image.hdr")
    (tmp_path / f"image{voxels_ext}").write_bytes(gzip.compress(data) if voxels_ext.endswith("gz") else data)
    np.testing.assert_array_equal(read_volume(tmp_path / "image.hdr", max_bytes=MAX).array[0], voxels())


def test_a_pair_of_another_name_that_is_linked_to_finds_its_voxels(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    nibabel.Nifti1Pair(voxels(), AFFINES["oblique"]).to_filename(tmp_path / "store" / "scan.hdr")
    (tmp_path / "p1.hdr").symlink_to(tmp_path / "store" / "scan.hdr")
    np.testing.assert_array_equal(read_volume(tmp_path / "p1.hdr", max_bytes=MAX).array[0], voxels())


def test_analyze_and_headers_of_other_programs_are_refused(tmp_path: Path) -> None:
    nibabel.AnalyzeImage(voxels(), AFFINES["straight"]).to_filename(tmp_path / "image.hdr")
    with pytest.raises(Unreadable, match="Analyze"):
        read_grid(tmp_path / "image.hdr")
    (tmp_path / "image.hdr").write_text("ENVI\nsamples = 3\n" + "band names = a\n" * 40)
    with pytest.raises(Unreadable, match="not a NIfTI file"):
        read_grid(tmp_path / "image.hdr")


@pytest.mark.parametrize("name", ["image.nhdr", "image.hdr"])
def test_voxels_that_are_too_few_or_too_many_are_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(path))
    other = data_file(path)
    assert other is not None
    data = other.read_bytes()
    for wrong in (data[:-1], data + b"\0", b""):
        other.write_bytes(wrong)
        with pytest.raises(Unreadable):
            read_volume(path, max_bytes=MAX)


@pytest.mark.parametrize("name", ["../image.raw", "/image.raw", "sub/image.raw", "LIST", "image%03d.raw 1 3 1"])
def test_an_nhdr_names_one_file_beside_it_and_no_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.nhdr"
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(path))
    text = path.read_text()
    path.write_text(text.replace("data file: image.raw", f"data file: {name}"))
    with pytest.raises(Unreadable):
        read_volume(path, max_bytes=MAX)


def test_an_nrrd_header_that_disagrees_with_its_extension_says_what_to_name_it(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(tmp_path / "image.nhdr"))
    with pytest.raises(Unreadable, match=r"name it \.nhdr"):
        read_grid((tmp_path / "image.nhdr").rename(tmp_path / "image.nrrd"))
    sitk.WriteImage(itk_image(voxels(), AFFINES["oblique"]), str(tmp_path / "other.nrrd"))
    with pytest.raises(Unreadable, match=r"name it \.nrrd"):
        read_grid((tmp_path / "other.nrrd").rename(tmp_path / "other.nhdr"))
