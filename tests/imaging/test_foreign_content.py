"""A file that holds something else than its name promises is refused, and the reason says what it is."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import Unreadable
from rayapp.imaging.reader import read_grid, read_volume
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import write_series


def _written(tmp_path: Path, name: str) -> bytes:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(tmp_path / name))
    return (tmp_path / name).read_bytes()


def _zipped(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.nii", b"voxels" * 100)
    return (tmp_path / "a.zip").read_bytes()


@pytest.mark.parametrize("ext", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_the_reason_says_what_a_file_is_and_what_to_do(tmp_path: Path, ext: str) -> None:
    dicom = write_series(tmp_path / "series", voxels(), AFFINES["straight"])[0]
    contents = {
        "name it .nrrd": _written(tmp_path, "a.nrrd"),
        "name it .mha": _written(tmp_path, "a.mha"),
        "zip archive": _zipped(tmp_path),
        "in a folder": dicom.read_bytes(),
        "web server": b"\n<!DOCTYPE html><html><body>404</body></html>" * 20,
        "zeros: the copy": bytes(5000),
        "bzip2": b"BZh91AY&SY" + bytes(500),
    }
    for words, content in contents.items():
        if words == f"name it {ext}":
            continue
        path = tmp_path / f"image{ext}"
        for packed in (content, gzip.compress(content)) if ext == ".nii.gz" else (content,):
            path.write_bytes(packed)
            with pytest.raises(Unreadable, match=words):
                read_grid(path)
            with pytest.raises(Unreadable, match=words):
                read_volume(path, max_bytes=MAX)


def test_plain_content_under_a_gzipped_name_is_refused_by_the_name_that_fits(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").write_bytes(_written(tmp_path, "a.nii"))
    with pytest.raises(Unreadable, match=r"name the file \.nii,"):
        read_volume(tmp_path / "image.nii.gz", max_bytes=MAX)


def test_a_black_image_is_no_copy_that_did_not_finish(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        _written(tmp_path, name)
        assert not read_volume(tmp_path / name, max_bytes=MAX).array.any()
