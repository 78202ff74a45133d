"""A volume from outlines on a few slices."""

import numpy as np
import pytest
from scipy import ndimage

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


def components(mask):
    return ndimage.label(mask, np.ones((3, 3)))[1]


def test_a_structure_that_moves_keeps_its_size_on_the_way():
    field = interpolated_depth({2: disc(6.0, (14, 25)), 10: disc(6.0, (46, 20))}, 12, SPACING)
    areas = (field[..., 2:11] > 0).sum(axis=(0, 1))
    np.testing.assert_allclose(areas, areas[0], rtol=0.1)
    middle = np.argwhere(field[..., 6] > 0).mean(axis=0)
    np.testing.assert_allclose(middle, (30, 22.5), atol=0.6)


def test_the_way_between_two_discs_is_an_oblique_cylinder():
    start, end, slices = np.array((18.0, 30.0)), np.array((40.0, 18.0)), range(3, 10)
    field = interpolated_depth({3: disc(8.0, start), 9: disc(8.0, end)}, 13, SPACING)
    for k in slices:
        centre = start + (k - 3) / 6 * (end - start)
        truth = disc(8.0, centre)
        both = (field[..., k] > 0) & truth
        assert 2 * both.sum() / ((field[..., k] > 0).sum() + truth.sum()) > 0.95


def test_a_part_that_splits_goes_to_both_and_two_that_join_come_from_both():
    trunk, legs = disc(9.0, (30, 25)), disc(6.0, (18, 25)) | disc(6.0, (42, 25))
    for slices in ({2: trunk, 10: legs}, {2: legs, 10: trunk}):
        field = interpolated_depth(slices, 12, SPACING)
        assert all((field[..., k] > 0).any() for k in range(2, 11))
        near_legs = 9 if slices[10] is legs else 3
        assert components(field[..., near_legs] > 0) == 2
        areas = (field[..., 2:11] > 0).sum(axis=(0, 1))
        assert areas.min() > 0.5 * min(trunk.sum(), legs.sum())


def test_two_parts_that_both_move_do_not_mix():
    first = disc(5.0, (14, 12)) | disc(5.0, (14, 40))
    second = disc(5.0, (44, 12)) | disc(5.0, (44, 40))
    field = interpolated_depth({0: first, 8: second}, 9, SPACING)
    for k in range(9):
        assert components(field[..., k] > 0) == 2
    np.testing.assert_allclose((field > 0).sum(axis=(0, 1)), first.sum(), rtol=0.12)


def test_a_part_that_has_no_counterpart_ends_between_the_slices():
    first = disc(8.0, (14, 25)) | disc(4.0, (54, 25))
    field = interpolated_depth({2: first, 8: disc(8.0, (14, 25))}, 10, SPACING)
    beside = field[45:, :, 2:9] > 0
    areas = beside.sum(axis=(0, 1))
    assert areas[0] == disc(4.0, (54, 25)).sum()
    assert areas[3] > 0
    assert areas[-1] == 0
    assert (np.diff(areas) <= 0).all()


def test_beyond_the_last_slice_small_parts_end_as_late_as_large_ones():
    field = interpolated_depth(
        {2: disc(12.0, (18, 25)) | disc(4.0, (52, 25)), 6: disc(12.0, (18, 25)) | disc(4.0, (52, 25))}, 12, SPACING
    )
    assert (field[45:, :, 8] > 0).any()
