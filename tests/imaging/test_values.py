"""Values that maps and other programs' label maps hold: infinities, outliers, rounding, probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_instances import stack_of
from rayapp.imaging.reader import read_segmentation, read_volume
from rayapp.imaging.volume import Volume
from tests.imaging.grids import AFFINES, MAX, SHAPE, labels, voxels

AFFINE = AFFINES["oblique"]


def _shown(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The values that a DICOM viewer computes from the stored ones."""
    stack, stored = stack_of(Volume(array=array[None], affine=AFFINE), "map")
    assert np.isfinite([stack.slope, stack.intercept, *stack.window]).all()
    return stored * stack.slope + stack.intercept


def _map() -> npt.NDArray[np.float32]:
    return voxels().astype(np.float32) / 7


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 1e30, -3e38, 1e300], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@np.errstate(over="ignore")
def test_one_odd_voxel_changes_no_other(odd: float, dtype: Any, tmp_path: Path) -> None:
    array = _map().astype(dtype)
    array[2, 3, 1] = odd
    path = tmp_path / "map.nii.gz"
    nibabel.Nifti1Image(array, AFFINE).to_filename(path)
    volume = read_volume(path, max_bytes=MAX)
    others = np.arange(array.size) != np.ravel_multi_index((2, 3, 1), SHAPE)
    assert np.isfinite(volume.array).all()
    np.testing.assert_array_equal(volume.array[0].ravel()[others], array.ravel()[others])
    np.testing.assert_allclose(_shown(volume.array[0]).ravel()[others], array.ravel()[others], atol=0.05)


@pytest.mark.parametrize("array", [np.full(SHAPE, np.nan), np.full(SHAPE, np.inf), np.full(SHAPE, 3.5)], ids=str)
def test_an_image_without_two_values_is_shown(array: npt.NDArray[Any]) -> None:
    wanted = 3.5 if array[0, 0, 0] == 3.5 else 0.0
    np.testing.assert_allclose(_shown(array), wanted)


def test_infinities_of_both_signs_become_the_ends_of_the_finite_values(tmp_path: Path) -> None:
    array = _map()
    array[0, 0, 0], array[1, 0, 0], array[2, 0, 0] = np.inf, -np.inf, np.nan
    finite = array[np.isfinite(array)]
    path = tmp_path / "map.nii"
    nibabel.Nifti1Image(array, AFFINE).to_filename(path)
    found = read_volume(path, max_bytes=MAX).array[0]
    assert list(found[:3, 0, 0]) == [finite.max(), finite.min(), finite.min()]
    assert found.flags.f_contiguous


@pytest.mark.parametrize("factor", [1e-30, 1e-9, 1.0, 1e9, 1e30])
def test_maps_of_any_range_keep_their_contrast(factor: float) -> None:
    array = _map().astype(np.float64) * factor
    np.testing.assert_allclose(_shown(array), array, atol=float(np.ptp(array)) / 60000)


@pytest.mark.parametrize("most", [1, 4, 255, 300, 2000])
def test_a_label_map_that_nibabel_scaled_to_16_bits_is_read(most: int, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    path = tmp_path / "label.nii.gz"
    wanted = labels(most=most, dtype=np.uint16)
    nibabel.Nifti1Image(wanted.astype(np.float64), AFFINE, header).to_filename(path)
    assert not np.array_equal(nibabel.load(path).get_fdata(), wanted)
    found = read_segmentation(path, max_bytes=MAX).array
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype.kind == "u"


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.linspace(0, 1, 140, dtype=np.float32).reshape(SHAPE), "probabilities"),
        (labels() + np.float32(0.01), "whole numbers"),
        (labels().astype(np.int16) - 1, "between 0"),
        (np.where(labels() == 1, np.nan, 0.0), "between 0"),
        (np.moveaxis(np.eye(4, dtype=np.uint8)[labels()], -1, 0).transpose(1, 2, 3, 0), "one-hot"),
        (labels().astype(np.complex64), "not supported"),
    ],
    ids=["probabilities", "between", "negative", "nan", "one-hot", "complex"],
)
def test_what_is_no_label_map_is_refused_with_what_to_do(array: npt.NDArray[Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "label.nii"
    nibabel.Nifti1Image(array, AFFINE).to_filename(path)
    with pytest.raises(Unreadable, match=reason):
        read_segmentation(path, max_bytes=MAX)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_64_bit_integers_are_read_as_labels_with_gaps(dtype: Any, tmp_path: Path) -> None:
    wanted = labels().astype(dtype) * 500
    path = tmp_path / "label.nii"
    nibabel.Nifti1Image(wanted, AFFINE, dtype=dtype).to_filename(path)
    np.testing.assert_array_equal(read_segmentation(path, max_bytes=MAX).array, wanted)
