"""Drawings become clicks for a network, and hold in the answer whatever the network predicts."""

import numpy as np
import pytest

from rayapp.inference.infer_task import Drawing, Prompts, TaskInfo
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import bounding_box, enforce_drawings, farthest_point_sample, lower_drawings

SHAPE = (17, 23, 29)
ORGANS = TaskInfo(type="deepedit", labels={"background": 0, "liver": 1, "spleen": 2}, dimension=3, description="")
ANYTHING = TaskInfo(type="deepgrow", labels={}, dimension=3, description="")
SCRIBBLES = TaskInfo(type="scribbles", labels={}, dimension=3, description="")
SIX = [(3, 5, 9), (12, 6, 8), (7, 2, 10), (8, 11, 9), (6, 6, 4), (6, 7, 15)]


def square(axis, at=6):
    """A closed curve from 4 to 10 and from 5 to 9 on one slice, and what it encloses."""
    corners = [(4, 5), (4, 9), (10, 9), (10, 5)]
    inside = np.zeros(SHAPE, bool)
    np.moveaxis(inside, axis, 0)[at, 4:11, 5:10] = True
    return [tuple(np.insert(corner, axis, at).tolist()) for corner in corners], inside


def test_extreme_points_are_clicks_and_for_one_structure_the_box():
    found = lower_drawings(Prompts(extremes={"foreground": SIX}, clicks={"foreground": [(6, 6, 6)]}), ANYTHING, SHAPE)
    assert found.clicks == {"foreground": [(6, 6, 6), *SIX]}
    assert found.roi == ((3, 2, 4), (13, 12, 16))
    assert lower_drawings(Prompts(extremes={"liver": SIX}), ORGANS, SHAPE).roi is None, "the spleen is not in that box"


def test_a_structure_by_its_own_name_is_the_foreground_of_a_model_of_one():
    prompts = Prompts(label="cyst", clicks={"cyst": [(1, 1, 1)], "background": [(2, 2, 2)]}, extremes={"cyst": SIX})
    for info in (ANYTHING, SCRIBBLES):
        found = lower_drawings(prompts, info, SHAPE)
        assert found.clicks == {"foreground": [(1, 1, 1), *SIX], "background": [(2, 2, 2)]}
        assert found.roi == ((3, 2, 4), (13, 12, 16))


@pytest.mark.parametrize(
    ("roi", "both"),
    [
        (((5, 0, 0), (17, 23, 10)), ((5, 2, 4), (13, 12, 10))),
        (((14, 0, 0), (17, 23, 29)), ((3, 2, 4), (13, 12, 16))),
    ],
)
def test_a_box_that_was_drawn_too_holds_beside_extreme_points_where_both_can(roi, both):
    assert lower_drawings(Prompts(extremes={"foreground": SIX}, roi=roi), ANYTHING, SHAPE).roi == both


def test_a_structure_ends_at_its_extreme_points_and_others_do_not():
    labels = np.ones(SHAPE, np.uint8, order="F")
    labels[:, :, 20:] = 2
    held = enforce_drawings(labels, Prompts(extremes={"liver": SIX}), ORGANS)
    assert bounding_box(np.argwhere(held == 1)) == ((3, 2, 4), (13, 12, 16))
    assert (held[:, :, 20:] == 2).all()
    assert (labels[:, :, :20] == 1).all(), "the model's own array is left as it was"


@pytest.mark.parametrize("box", [{"roi": ((3, 2, 4), (13, 12, 16))}, {"extremes": {"liver": SIX}}])
def test_nothing_is_outside_a_box_and_beyond_extreme_points_only_what_is_clicked(box):
    marks = np.zeros(SHAPE, np.uint8)
    marks[10:15, 6, 6] = 2
    curve = ((5.0, 5.0, 8), (15.0, 5.0, 8), (15.0, 9.0, 8), (5.0, 9.0, 8))
    drawing = {"liver": Drawing(marks=marks, curves=[curve])}
    clicks = {"liver": [(6, 6, 6), (16, 20, 20)]}
    held = enforce_drawings(np.zeros(SHAPE, np.uint8), Prompts(clicks=clicks, drawings=drawing, **box), ORGANS)
    assert held[10:13, 6, 6].all()
    assert held[5:13, 5:10, 8].all()
    held[3:13, 2:12, 4:16] = 0
    assert np.argwhere(held).tolist() == ([[16, 20, 20]] if "extremes" in box else [])


def test_strokes_give_a_few_clicks_spread_over_them():
    marks = np.zeros(SHAPE, np.uint8)
    marks[2:16, 5, 7], marks[1, 1:22, 7] = FOREGROUND, BACKGROUND
    found = lower_drawings(Prompts(marks=marks), ANYTHING, SHAPE)
    for name, mark in (("foreground", FOREGROUND), ("background", BACKGROUND)):
        assert 1 < len(found.clicks[name]) <= 8
        assert all(marks[point] == mark for point in found.clicks[name])
    assert {2, 15} <= {i for i, _, _ in found.clicks["foreground"]}, "to both ends"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_closed_curve_gives_clicks_deep_inside_it_and_is_the_structures_slice(axis):
    curve, inside = square(axis)
    prompts = Prompts(drawings={"spleen": Drawing(curves=[curve])})
    clicks = lower_drawings(prompts, ORGANS, SHAPE).clicks
    assert set(clicks) == {"spleen"}
    assert all(inside[point] and 6 <= np.delete(point, axis)[1] <= 8 for point in clicks["spleen"])
    labels = np.full(SHAPE, 2, np.uint8, order="F")
    labels[0] = labels[:, 0] = labels[:, :, 0] = 1
    held = enforce_drawings(labels, prompts, ORGANS)
    plane = np.moveaxis(held, axis, -1)[..., 6]
    assert np.array_equal(np.moveaxis(held == 2, axis, -1)[..., 6], np.moveaxis(inside, axis, -1)[..., 6])
    assert (plane == 1).any(), "what is not the structure stays another's"
    away = [n for n in range(SHAPE[axis]) if n != 6]
    assert np.array_equal(held.take(away, axis), labels.take(away, axis))


def test_two_curves_on_a_slice_are_two_parts_of_the_structure():
    one, inside = square(2)
    other = [(12, 12, 6), (12, 15, 6), (15, 15, 6), (15, 12, 6)]
    held = enforce_drawings(np.zeros(SHAPE, np.uint8, order="F"), Prompts(curves=[one, other]), ANYTHING)
    inside[12:16, 12:16, 6] = True
    assert np.array_equal(held == 1, inside)


def test_an_inner_curve_is_a_hole_without_clicks_in_it():
    outer, inner = ([(c, c, 6), (c, 16 - c, 6), (16 - c, 16 - c, 6), (16 - c, c, 6)] for c in (1.5, 5.5))
    prompts = Prompts(curves=[outer, inner])
    held = enforce_drawings(np.ones(SHAPE, np.uint8, order="F"), prompts, ANYTHING)
    wall = np.zeros(SHAPE[:2], bool)
    wall[2:15, 2:15] = True
    wall[6:11, 6:11] = False
    assert np.array_equal(held[:, :, 6] == 1, wall)
    assert all(wall[i, j] for i, j, _ in lower_drawings(prompts, ANYTHING, SHAPE).clicks["foreground"])


def test_a_stroke_holds_over_a_curve_of_another_structure():
    curve, inside = square(2)
    marks = np.zeros(SHAPE, np.uint8)
    marks[5:9, 7, 6] = FOREGROUND
    drawings = {"liver": Drawing(marks=marks), "spleen": Drawing(curves=[curve])}
    held = enforce_drawings(np.zeros(SHAPE, np.uint8, order="F"), Prompts(drawings=drawings), ORGANS)
    assert np.array_equal(held, np.where(marks == FOREGROUND, 1, 2 * inside))


def test_strokes_hold_over_curves_and_clicks_over_strokes():
    curve, inside = square(2)
    marks = np.zeros(SHAPE, np.uint8)
    marks[5:9, 7, 6], marks[0, 0, :] = BACKGROUND, FOREGROUND
    drawing = Drawing(marks=marks, curves=[curve])
    clicks = {"liver": [(5, 7, 6)], "background": [(0, 0, 3)]}
    held = enforce_drawings(
        np.zeros(SHAPE, np.uint8, order="F"), Prompts(drawings={"spleen": drawing}, clicks=clicks), ORGANS
    )
    expected = 2 * inside.astype(np.uint8)
    expected[marks == BACKGROUND], expected[marks == FOREGROUND] = 0, 2
    expected[5, 7, 6], expected[0, 0, 3] = 1, 0
    assert np.array_equal(held, expected)


def test_models_that_draw_themselves_are_shown_what_was_drawn():
    curve, _ = square(2)
    marks = np.full(SHAPE, FOREGROUND, np.uint8)
    prompts = Prompts(marks=marks, curves=[curve])
    assert lower_drawings(prompts, SCRIBBLES, SHAPE).clicks == {}
    labels = np.zeros(SHAPE, np.uint8)
    assert enforce_drawings(labels, prompts, SCRIBBLES) is labels


def test_clicks_alone_change_nothing():
    labels = np.zeros(SHAPE, np.uint8)
    assert enforce_drawings(labels, Prompts(clicks={"liver": [(1, 2, 3)]}), ORGANS) is labels


def test_points_are_spread_without_repeating_any():
    points = np.array([(0, 0, 0), (9, 0, 0), (4, 0, 0)])
    assert farthest_point_sample(points, 8) == [(4, 0, 0), (9, 0, 0), (0, 0, 0)]
    assert farthest_point_sample(points[:0], 8) == []
