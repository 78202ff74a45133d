"""Smoothing by millimetres, at any voxel size."""

import numpy as np
from scipy import ndimage

from rayapp.inference.energy import smoothing
from rayapp.inference.energy.smoothing import gaussian


def test_the_same_millimetres_are_fewer_voxels_along_a_coarser_axis():
    array = np.random.default_rng(0).normal(size=(20, 20, 10)).astype(np.float32)
    np.testing.assert_array_equal(gaussian(array, 3, np.array([1, 1, 5])), ndimage.gaussian_filter(array, [3, 3, 0.6]))


def test_a_kernel_is_bounded_where_voxels_claim_to_be_millionths_of_a_millimetre(monkeypatch):
    widths = []
    monkeypatch.setattr(ndimage, "gaussian_filter", lambda array, sigma: widths.append(max(sigma)) or array)
    gaussian(np.zeros((4, 4, 4), np.float32), 3, np.array([1e-6, 1, 1]))
    assert widths == [smoothing.WIDEST]
