"""Paths between extreme points cost what they cross, at any voxel size."""

import numpy as np
import pytest
from scipy import ndimage

from rayapp.inference.energy.extreme_points import BASE_COST, path_costs


@pytest.mark.parametrize("mm", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("channels", [1, 3])
def test_crossing_an_edge_costs_the_same_at_any_spacing(mm, axis, channels):
    spacing = np.ones(3)
    spacing[axis] = mm
    count = round(40 / mm)
    position = (np.arange(count) + 0.5) * mm
    step = ndimage.gaussian_filter1d((np.arange(4000) >= 2000).astype(np.float32), 200)  # soft, sampled at 0.01 mm
    profile = step[(position * 100).astype(int)]
    shape = [9, 9, 9]
    shape[axis] = count
    image = np.broadcast_to(np.moveaxis(profile[:, None, None], 0, axis), shape)
    costs = path_costs(np.stack([image] * channels).astype(np.float32), spacing)
    line = np.moveaxis(costs, axis, 0)[:, 4, 4]
    assert (line - BASE_COST).sum() * mm == pytest.approx(1.0, rel=0.1)
    assert line.sum() * mm == pytest.approx(1.0 + BASE_COST * 40, rel=0.1)
