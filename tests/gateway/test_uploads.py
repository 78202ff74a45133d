"""Checks of uploaded files that rewrite them, without a server."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from deployments.uploads import check_label
from rayapp.imaging.nrrd import encode_masks, read_masks
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Masks
from tests.imaging.grids import AFFINES, MAX, SHAPE, voxels


def test_overlapping_segments_that_slicer_cropped_are_kept_whole(tmp_path: Path) -> None:
    affine = AFFINES["oblique"]
    nibabel.Nifti1Image(voxels(), affine).to_filename(tmp_path / "image.nii")
    corner = affine.copy()
    corner[:3, 3] += affine[:3, :3] @ (1, 2, 0)
    array = np.zeros((2, 3, 4, 2), bool)
    array[0], array[1, 1:, 2:, 1:] = True, True
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(encode_masks(Masks(array=array, affine=corner, names=("liver", "tumour"))))
    check_label(path, tmp_path / "image.nii", MAX)
    whole = np.zeros((2, *SHAPE), bool)
    whole[:, 1:4, 2:6, :2] = array
    masks = read_masks(path, max_bytes=MAX)
    assert masks is not None
    assert masks.names == ("liver", "tumour")
    np.testing.assert_array_equal(masks.array, whole)
    flat = read_segmentation(path, max_bytes=MAX)
    np.testing.assert_array_equal(flat.array, np.where(whole[1], 2, whole[0]))
