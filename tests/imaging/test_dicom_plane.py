"""Stacks of slices whose positions are not quite even: rounding is forgiven, a slice out of its place is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from rayapp.errors import Unreadable
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_seg import encode, read_segmentation
from rayapp.imaging.reader import read_grid, read_volume
from rayapp.imaging.volume import Segmentation
from tests.imaging.grids import AFFINES, MAX, Affine, labels, turned, voxels
from tests.imaging.series import edit, write_series

SHAPE = (5, 7, 12)
STRAIGHT = {"straight": turned((0, 0, 0)), "oblique": turned((12, -7, 21)), "steep": turned((40, 25, -33))}


def _with_spacing(affine: Affine, between: float) -> Affine:
    changed = affine.copy()
    changed[:3, 2] *= between / np.linalg.norm(affine[:3, 2])
    return changed


def _move(file: Path, by: np.ndarray) -> None:
    edit(file, ImagePositionPatient=(np.array(pydicom.dcmread(file).ImagePositionPatient, float) + by).tolist())


@pytest.mark.parametrize("between", [0.5, 0.6, 0.625, 1.0, 1.25])
@pytest.mark.parametrize("affine", STRAIGHT.values(), ids=STRAIGHT.keys())
def test_positions_rounded_to_a_tenth_are_an_even_stack_and_its_segmentation_comes_back(
    tmp_path: Path, affine: Affine, between: float
) -> None:
    affine = _with_spacing(affine, between)
    for file in write_series(tmp_path / "series", voxels(SHAPE), affine):
        place = [round(float(number), 1) for number in pydicom.dcmread(file).ImagePositionPatient]
        edit(file, ImagePositionPatient=place)
    volume = read_volume(tmp_path / "series", max_bytes=MAX)
    np.testing.assert_array_equal(volume.array[0], voxels(SHAPE))
    corners = [(0, 0, 0), (4, 6, 11), (4, 0, 5)]
    np.testing.assert_allclose(index_to_mm(volume.affine, corners), index_to_mm(affine, corners), atol=0.18)
    label = Segmentation(array=labels(SHAPE), affine=volume.affine)
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(label, tmp_path / "series"))
    found = read_segmentation(path, read_grid(tmp_path / "series"), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, label.array)


@pytest.mark.parametrize("between", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("which", [1, 5, 10])
def test_a_missing_slice_is_noticed_though_positions_are_rounded(tmp_path: Path, between: float, which: int) -> None:
    files = write_series(tmp_path / "series", voxels(SHAPE), _with_spacing(STRAIGHT["straight"], between))
    for file in files:
        edit(file, ImagePositionPatient=[round(float(n), 1) for n in pydicom.dcmread(file).ImagePositionPatient])
    files[which].unlink()
    with pytest.raises(Unreadable, match="not evenly spaced"):
        read_volume(tmp_path / "series", max_bytes=MAX)


@pytest.mark.parametrize("mm", [0.4, 2.0, 30.0])
def test_a_slice_shifted_sideways_is_refused(tmp_path: Path, mm: float) -> None:
    files = write_series(tmp_path / "series", voxels(SHAPE), STRAIGHT["oblique"])
    row = np.array(pydicom.dcmread(files[6]).ImageOrientationPatient[:3], float)
    _move(files[6], mm * row)
    with pytest.raises(Unreadable, match="shifted sideways"):
        read_volume(tmp_path / "series", max_bytes=MAX)


def test_slices_spaced_a_little_unevenly_have_a_segmentation_that_comes_back(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(SHAPE), STRAIGHT["oblique"])
    first, last = (np.array(pydicom.dcmread(file).ImagePositionPatient, float) for file in (files[0], files[-1]))
    _move(files[4], 0.09 * (last - first) / 11)
    grid = read_grid(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(Segmentation(array=labels(SHAPE), affine=grid.affine), tmp_path / "series"))
    np.testing.assert_array_equal(read_segmentation(path, grid, max_bytes=MAX).array, labels(SHAPE))


def test_a_negative_spacing_between_slices_turns_nothing(tmp_path: Path) -> None:
    for name in ("oblique", "left-handed"):
        files = write_series(tmp_path / name, voxels(SHAPE), AFFINES[name])
        wanted = read_volume(tmp_path / name, max_bytes=MAX)
        for file in files:
            edit(file, SpacingBetweenSlices=-3.25)
        found = read_volume(tmp_path / name, max_bytes=MAX)
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)
