"""Closed curves are what was drawn: to the voxel, with holes, and without losing what is thin."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from skimage.draw import polygon2mask

from rayapp.inference.prompts.outlines import enclosed, enforce_curves, slice_of

SHAPE = (70, 75, 9)


def circle(radius, centre=(35.0, 36.0), k=4, points=200):
    turns = np.linspace(0, 2 * np.pi, points, endpoint=False)
    i, j = centre[0] + radius * np.cos(turns), centre[1] + radius * np.sin(turns)
    return [(float(a), float(b), float(k)) for a, b in zip(i, j, strict=True)]


def centres_within(radius, centre=(35.0, 36.0)):
    i, j = np.indices(SHAPE[:2])
    return np.hypot(i - centre[0], j - centre[1]) <= radius


@pytest.mark.parametrize("radius", [4, 8, 15, 30])
def test_circles_have_their_area(radius):
    rng = np.random.default_rng(radius)
    areas = []
    for centre in rng.uniform(34.5, 35.5, (40, 2)):
        areas.append(enclosed([circle(radius, centre)], SHAPE)[2, 4].sum())
    assert np.mean(areas) == pytest.approx(np.pi * radius**2, rel=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_voxel_belongs_to_the_curve_if_its_centre_lies_inside(axis):
    centre = (35.3, 36.8)
    shape = tuple(np.insert(SHAPE[:2], axis, 9))
    curve = [tuple(np.insert(point[:2], axis, 4).tolist()) for point in circle(11.4, centre, points=2000)]
    assert slice_of(curve) == (axis, 4)
    ((where, inside),) = enclosed([curve], shape).items()
    assert where == (axis, 4)
    np.testing.assert_array_equal(inside, centres_within(11.4, centre))


def test_centres_on_the_curve_belong_to_it():
    square = [(10, 20, 3), (10, 30, 3), (16, 30, 3), (16, 20, 3)]
    inside = enclosed([square], SHAPE)[2, 3]
    expected = np.zeros(SHAPE[:2], bool)
    expected[10:17, 20:31] = True
    np.testing.assert_array_equal(inside, expected)


def test_an_inner_curve_is_the_border_of_a_hole():
    inside = enclosed([circle(20.2), circle(12.3), circle(3.3)], SHAPE)[2, 4]
    np.testing.assert_array_equal(inside, centres_within(20.2) ^ centres_within(12.3) ^ centres_within(3.3))


def test_neighbouring_curves_keep_the_voxels_on_their_common_side():
    one = [(10, 20, 3), (10, 30, 3), (16, 30, 3), (16, 20, 3)]
    other = [(16, 20, 3), (16, 30, 3), (25, 30, 3), (25, 20, 3)]
    assert enclosed([one, other], SHAPE)[2, 3].sum() == 16 * 11


def test_curves_on_other_slices_have_nothing_to_do_with_each_other():
    found = enclosed([circle(20.2), circle(12.1, k=5)], SHAPE)
    assert {where: int(mask.sum()) for where, mask in found.items()} == {
        (2, 4): centres_within(20.2).sum(),
        (2, 5): centres_within(12.1).sum(),
    }


def test_a_curve_without_a_centre_inside_keeps_the_voxels_it_runs_through():
    line = [(10.2, 20.2, 3.0), (10.4, 29.8, 3.0), (10.3, 20.2, 3.0)]
    inside = enclosed([line], SHAPE)[2, 3]
    assert np.argwhere(inside).tolist() == [[10, j] for j in range(20, 31)]


def test_the_thin_part_of_a_curve_keeps_the_voxels_it_runs_through():
    left = [(10.5, 10.5, 4), (10.5, 30.5, 4), (20.5, 30.5, 4), (20.5, 20.6, 4)]
    right = [(28, 20.6, 4), (28, 40.5, 4), (40, 40.5, 4), (40, 10.5, 4), (28, 10.5, 4), (28, 20.3, 4)]
    inside = enclosed([[*left, *right, (20.5, 20.3, 4), (20.5, 10.5, 4)]], SHAPE)[2, 4]
    assert inside[21:28, 20:22].any(axis=1).all(), "both halves hang together"
    assert not inside[22:27, :19].any()
    assert not inside[22:27, 23:].any()


def test_a_curve_on_the_images_border_encloses_the_outermost_voxels():
    frame = [(-0.5, -0.5, 0), (69.5, -0.5, 0), (69.5, 74.5, 0), (-0.5, 74.5, 0)]
    assert enclosed([frame], SHAPE)[2, 0].all()


def test_on_its_slice_a_structure_is_what_the_curve_encloses_and_others_stay_outside():
    labels = np.full(SHAPE, 2, np.uint8)
    labels[5:60, 5:60] = 1
    enforce_curves(labels, [circle(10.1)], 1)
    np.testing.assert_array_equal(labels[:, :, 4] == 1, centres_within(10.1))
    assert labels[1, 1, 4] == 2
    assert labels[6, 6, 4] == 0
    assert (labels[5:60, 5:60, 5] == 1).all()


def near(points):
    """The pixels of a slice that a closed line can run through: none of its points is further from their centres."""
    at = np.stack(np.indices(SHAPE[:2]), axis=-1).astype(float)
    pixels = np.zeros(SHAPE[:2], bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        along = end - start
        share = np.clip(((at - start) @ along) / max(along @ along, 1e-12), 0, 1)
        pixels |= np.linalg.norm(at - start - share[..., None] * along, axis=-1) <= np.sqrt(0.5) + 1e-6
    return pixels


def drawn(points):
    return [(float(a), float(b), 4.0) for a, b in points]


corners = st.lists(st.tuples(st.floats(2, 67), st.floats(2, 72)), min_size=3, max_size=9, unique=True)


@given(st.lists(corners, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_curves_of_any_shape_are_those_of_skimages_polygons_by_the_even_odd_rule(polygons):
    polygons = [np.array(points) + 0.0137 for points in polygons]  # no centre on a side
    inside = enclosed([drawn(points) for points in polygons], SHAPE)[2, 4]
    expected = np.logical_xor.reduce([polygon2mask(SHAPE[:2], points) for points in polygons])
    lines = np.logical_or.reduce([near(points) for points in polygons])
    np.testing.assert_array_equal(inside & ~lines, expected & ~lines)
    assert not (expected & ~inside).any()  # where it is thin, what a curve runs through belongs to it, too


@given(corners)
@settings(max_examples=60, deadline=None)
def test_a_convex_outline_is_what_simpleitk_fills_and_not_more(polygon):
    """Between what is enclosed without the pixels of the outline, and with all of them."""
    polygon = np.array(polygon)
    assume(np.linalg.matrix_rank(polygon - polygon[0], tol=0.1) == 2)
    points = polygon[ConvexHull(polygon).vertices]
    outline = near(points)
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(outline.astype(np.uint8)))) > 0
    inside = enclosed([drawn(points)], SHAPE)[2, 4]
    assert not (inside & ~filled).any()
    assert not (filled & ~outline & ~inside).any()


def test_a_hole_of_one_voxel_stays_open():
    inside = enclosed([circle(20.2), circle(0.6, (30.0, 33.0))], SHAPE)[2, 4]
    assert inside.sum() == centres_within(20.2).sum() - 1
    assert not inside[30, 33]
