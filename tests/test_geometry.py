"""Affines, grids and orientations."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.geometry import Orientation, index_to_mm, is_sane, mm_to_index, ras_to_lps, same_grid, spacing
from tests.imaging.grids import AFFINES, SHAPE, SPACING, Affine, assert_same_affine, every_affine, turned, voxels

_TURNS = [
    Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
    for axes in permutations(range(3))
    for flips in product((False, True), repeat=3)
]
every_turn = pytest.mark.parametrize("turn", _TURNS, ids=str)
_degrees = st.floats(-180, 180)
_signs = st.sampled_from((-1, 1))
grids = st.builds(turned, st.tuples(_degrees, _degrees, _degrees), st.tuples(_signs, _signs, _signs))


@given(grids, st.tuples(*[st.integers(-500, 500)] * 3))
@settings(max_examples=50, deadline=None)
def test_points_come_back_from_millimetres(affine: Affine, point: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(mm_to_index(affine, index_to_mm(affine, point)), point, atol=1e-6)


def test_lps_negates_x_and_y_alone_and_undoes_itself() -> None:
    affine = AFFINES["oblique"]
    lps = ras_to_lps(affine)
    np.testing.assert_array_equal(lps[:2], -affine[:2])
    np.testing.assert_array_equal(lps[2:], affine[2:])
    np.testing.assert_array_equal(ras_to_lps(lps), affine)


@every_affine
def test_spacing_is_the_length_of_the_axes(affine: Affine) -> None:
    assert sorted(spacing(affine)) == pytest.approx(sorted(SPACING))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("where", [(0, 0), (1, 2), (2, 1)])
def test_an_affine_with_numbers_that_are_none_is_not_sane(bad: float, where: tuple[int, int]) -> None:
    affine = AFFINES["oblique"].copy()
    affine[where] = bad
    assert not is_sane(affine)


def test_an_affine_that_does_not_span_space_is_not_sane() -> None:
    flat, alike = AFFINES["oblique"].copy(), AFFINES["oblique"].copy()
    flat[:3, 1] = 0
    alike[:3, 1] = 2 * alike[:3, 0]
    assert not is_sane(flat)
    assert not is_sane(alike)
    assert is_sane(AFFINES["oblique"])


@given(grids)
@settings(max_examples=50, deadline=None)
def test_a_grid_is_itself_after_a_round_trip_through_32_bit_floats(affine: Affine) -> None:
    shape = (512, 512, 400)
    assert same_grid(shape, affine, shape, affine.astype(np.float32).astype(np.float64))


@given(grids, st.sampled_from(range(3)), st.sampled_from((-1.0, -0.5, 0.5, 1.0)))
@settings(max_examples=50, deadline=None)
def test_half_a_voxel_aside_is_another_grid(affine: Affine, axis: int, voxels_aside: float) -> None:
    aside = affine.copy()
    aside[:3, 3] += affine[:3, axis] * voxels_aside
    assert not same_grid(SHAPE, affine, SHAPE, aside)
    assert not same_grid(SHAPE, aside, SHAPE, affine)


@every_affine
@pytest.mark.parametrize("axis", range(3))
def test_a_flip_in_place_is_another_grid(affine: Affine, axis: int) -> None:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    assert not same_grid(SHAPE, affine, SHAPE, affine @ flip)


def test_another_size_another_spacing_and_lps_for_ras_are_other_grids() -> None:
    affine = AFFINES["straight"]
    assert not same_grid(SHAPE, affine, (5, 7, 5), affine)
    assert not same_grid((64, 64, 64), affine, (64, 64, 64), affine @ np.diag([1.01, 1, 1, 1]))
    assert not same_grid(SHAPE, affine, SHAPE, ras_to_lps(affine))


@every_turn
def test_what_is_turned_and_turned_back_is_the_same(turn: Orientation) -> None:
    array = voxels((2, *SHAPE))
    np.testing.assert_array_equal(turn.undo(turn.apply(array)), array)
    np.testing.assert_array_equal(turn.undo(turn.apply(array[0])), array[0])
    assert np.shares_memory(turn.apply(array), array)


@every_turn
def test_points_go_where_their_voxels_go(turn: Orientation) -> None:
    array = voxels()
    points = np.array(list(np.ndindex(SHAPE)))
    there = turn.apply_points(points, SHAPE)
    np.testing.assert_array_equal(turn.apply(array)[tuple(there.T)], array[tuple(points.T)])
    np.testing.assert_array_equal(turn.undo_points(there, SHAPE), points)


@given(grids)
@settings(max_examples=50, deadline=None)
def test_canonical_axes_run_to_the_right_forwards_and_up_and_no_voxel_moves(affine: Affine) -> None:
    turn = Orientation.of(affine)
    canonical = turn.affine(affine, SHAPE)
    corners = np.array(list(product(*[(0, n - 1) for n in SHAPE])))
    moved = index_to_mm(canonical, turn.apply_points(corners, SHAPE))
    np.testing.assert_allclose(moved, index_to_mm(affine, corners), atol=1e-9)
    assert Orientation.of(canonical) == Orientation((0, 1, 2), (False, False, False))


@every_affine
def test_axes_along_the_world_become_a_diagonal(affine: Affine) -> None:
    canonical = Orientation.of(affine).affine(affine, SHAPE)
    if np.count_nonzero(affine[:3, :3]) == 3:
        assert (np.diag(canonical)[:3] > 0).all()
        assert_same_affine(canonical[:3, :3], np.diag(np.diag(canonical)[:3]))
