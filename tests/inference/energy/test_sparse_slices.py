"""A volume from outlines on a few slices."""

import numpy as np
import pytest

from rayapp.inference.energy.sparse_slices import SINGLE_SLICE_REACH, interpolated_depth, signed_distance

SPACING = np.array((0.8, 1.1, 3.0))


def disc(radius_mm, centre=(30, 25), shape=(61, 52)):
    i, j = np.ogrid[: shape[0], : shape[1]]
    return np.hypot((i - centre[0]) * SPACING[0], (j - centre[1]) * SPACING[1]) < radius_mm


def test_the_distance_is_in_millimetres_and_positive_inside():
    field = signed_distance(disc(12.0), SPACING[:2])
    assert field[30, 25] == pytest.approx(12.0, abs=1.0)
    assert field[30, 25 + 18] == pytest.approx(12.0 - 18 * 1.1, abs=1.2)
    assert (field > 0).sum() == disc(12.0).sum()


def test_a_mask_that_fills_its_slice_ends_at_the_border():
    field = signed_distance(np.ones((9, 7), bool), (1.0, 1.0))
    assert field.max() == 4.0
    assert field[0, 0] == 1.0


def test_given_slices_come_back_as_they_are():
    given = {3: disc(9.0), 8: disc(14.0, (26, 28)), 9: disc(4.0)}
    field = interpolated_depth(given, 14, SPACING)
    for k, mask in given.items():
        np.testing.assert_array_equal(field[..., k] > 0, mask)


def test_between_two_slices_the_outline_goes_from_one_to_the_other():
    field = interpolated_depth({2: disc(6.0), 10: disc(18.0)}, 12, SPACING)
    areas = (field[..., 2:11] > 0).sum(axis=(0, 1)) * SPACING[0] * SPACING[1]
    radii = np.sqrt(areas / np.pi)
    np.testing.assert_allclose(radii, np.linspace(6, 18, 9), atol=0.6)


def test_beyond_the_last_slice_it_shrinks_and_ends_a_gap_further_on():
    field = interpolated_depth({6: disc(15.0), 10: disc(15.0)}, 20, SPACING)
    areas = (field > 0).sum(axis=(0, 1))
    assert (np.diff(areas[10:15]) <= 0).all()
    assert areas[12] > 0.5 * areas[10]
    assert not areas[14:].any()
    assert not areas[:3].any()


def test_one_slice_alone_becomes_an_ellipsoid_around_it():
    field = interpolated_depth({15: disc(12.0)}, 31, SPACING)
    volume = (field > 0).sum() * SPACING.prod()
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3 * SINGLE_SLICE_REACH, rel=0.2)
    np.testing.assert_array_equal(field[..., 12], field[..., 18])
