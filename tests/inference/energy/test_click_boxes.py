"""Clicks that are close share a region of bounded size, and all lie in it."""

from types import SimpleNamespace

import numpy as np
import pytest

from rayapp.inference.energy import click_boxes


@pytest.mark.parametrize("near", [15.0, 20.0, 26.0])
def test_clicks_along_a_line_all_lie_in_the_region_that_they_share(near):
    scan = SimpleNamespace(shape=(512, 512, 400), spacing=np.array([0.8, 0.8, 0.8]))
    points = [(i, 256, 200) for i in range(100, 400, 6)]
    groups = click_boxes.grouped(points, scan, near)
    assert sorted(point for group in groups for point in group) == points
    for group in groups:
        ends = click_boxes.box_around(group, scan, near)
        region = click_boxes.region_between(ends, ends, scan)
        assert np.prod(region.shape) <= click_boxes.MAX_VOXELS
        assert all(
            (np.array(region.lower) <= point).all() and (point < np.array(region.upper)).all() for point in group
        )
