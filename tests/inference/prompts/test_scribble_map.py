"""Scribbled voxels, in every convention that clients have for them."""

import numpy as np
import pytest

from rayapp.errors import BadRequest
from rayapp.inference.infer_task import Prompts
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, build_marks, parse_marks

SHAPE = (17, 23, 29)
SEGMENTS = ["liver", "background_scribbles", "spleen", "foreground_scribbles"]
INFO = [{"name": name, "id": value, "color": "green"} for value, name in enumerate(SEGMENTS, start=1)]


def label_map(values):
    drawn = np.zeros(SHAPE, np.uint16)
    for number, value in enumerate(values):
        drawn[2 + number, 5:9, 11] = value
    return drawn


def where(marks, mark):
    return sorted({int(i) for i in np.nonzero(marks == mark)[0]})


@pytest.mark.parametrize("ids", [(1, 2, 3, 4), (9, 700, 3, 65535)])
def test_slicers_names_say_which_value_is_which(ids):
    info = [{"name": name, "id": value} for name, value in zip(SEGMENTS, ids, strict=True)]
    marks = parse_marks(label_map(ids), {"label_info": info}, {})
    assert np.asarray(marks).dtype == np.uint8
    assert (where(marks, BACKGROUND), where(marks, FOREGROUND)) == ([3], [5])


@pytest.mark.parametrize(
    ("labels", "background", "foreground"),
    [({}, 2, 3), ({"liver": 1, "spleen": 2, "left kidney": 3}, 4, 5), ({"background": 0, "tumour": 1}, 2, 3)],
)
def test_without_names_the_values_are_those_behind_the_models_labels(labels, background, foreground):
    for params in ({}, {"label_info": []}, {"label_info": None}):
        marks = parse_marks(label_map((1, background, foreground)), params, labels)
        assert (where(marks, BACKGROUND), where(marks, FOREGROUND)) == ([3], [4])


def test_where_nothing_is_scribbled_the_selected_segment_is_what_to_start_from():
    params = {"label_info": INFO, "selected_label_name": "spleen"}
    assert where(parse_marks(label_map((1, 0, 3)), params, {}), FOREGROUND) == [4]
    assert where(parse_marks(label_map((1, 0, 3, 4)), params, {}), FOREGROUND) == [5]
    assert where(parse_marks(label_map((1, 2, 3)), params, {}), FOREGROUND) == []


def test_other_segments_mean_nothing():
    marks = parse_marks(label_map((1, 0, 3)), {"label_info": INFO}, {})
    assert not np.asarray(marks).any()


@pytest.mark.parametrize("info", [{"a": 1}, "liver", [1], [{"name": "x"}], [{"name": "x", "id": "y"}], [["x", 1]]])
def test_a_label_info_that_is_none_is_refused(info):
    with pytest.raises(BadRequest, match="label_info must be a list of"):
        parse_marks(label_map((1,)), {"label_info": info}, {})


def test_clicks_count_as_marks_and_hold_over_scribbles():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[3, 4, 5:7] = BACKGROUND
    clicks = {"foreground": [(3, 4, 5), (16, 22, 28), (0, 1, 2)], "background": [(0, 1, 2)], "liver": [(9, 9, 9)]}
    marks = build_marks(SHAPE, Prompts(marks=drawn, clicks=clicks))
    assert np.argwhere(marks == FOREGROUND).tolist() == [[3, 4, 5], [16, 22, 28]]
    assert np.argwhere(marks == BACKGROUND).tolist() == [[0, 1, 2], [3, 4, 6]]
    assert np.count_nonzero(drawn) == 2


def test_nothing_holds_outside_the_box():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1:4, 4, 5] = FOREGROUND
    curve = [(0, 0, 9), (0, 9, 9), (9, 9, 9), (9, 0, 9)]
    prompts = Prompts(marks=drawn, curves=[curve], clicks={"foreground": [(1, 1, 1)]}, roi=((2, 3, 4), (9, 9, 10)))
    on = np.argwhere(build_marks(SHAPE, prompts) == FOREGROUND)
    assert (on.min(axis=0).tolist(), on.max(axis=0).tolist()) == ([2, 3, 5], [8, 8, 9])


def test_outside_the_box_is_background_and_its_centre_is_foreground_when_nothing_else_is():
    roi = ((1, 2, 3), (16, 20, 28))
    marks = np.asarray(build_marks(SHAPE, Prompts(roi=roi)))
    assert (marks[1:16, 2:20, 3:28] != BACKGROUND).all()
    assert np.count_nonzero(marks == BACKGROUND) == np.prod(SHAPE) - 15 * 18 * 25
    on = np.argwhere(marks == FOREGROUND)
    assert (on.min(axis=0).tolist(), on.max(axis=0).tolist()) == ([3, 6, 10], [12, 15, 19])


def test_a_small_box_is_seeded_whole_and_background_scribbles_in_it_stay():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[6, 7, 8] = BACKGROUND
    marks = build_marks(SHAPE, Prompts(marks=drawn, roi=((5, 6, 7), (8, 9, 10))))
    assert np.count_nonzero(marks == FOREGROUND) == 26
    assert marks[6, 7, 8] == BACKGROUND


def test_a_box_with_scribbles_on_the_structure_is_not_seeded():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[5, 6, 7] = drawn[16, 22, 28] = FOREGROUND
    marks = build_marks(SHAPE, Prompts(marks=drawn, roi=((5, 6, 7), (15, 16, 17))))
    assert np.argwhere(marks == FOREGROUND).tolist() == [[5, 6, 7]]


def test_no_foreground_at_all_is_refused():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1, 1, 1] = BACKGROUND
    for prompts in (Prompts(), Prompts(marks=drawn), Prompts(clicks={"background": [(1, 1, 1)]})):
        with pytest.raises(BadRequest, match="no foreground scribbles"):
            build_marks(SHAPE, prompts)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_closed_curve_marks_what_it_encloses_on_its_slice(axis):
    corners = [(4, 5), (4, 9), (10, 9), (10, 5)]
    curve = [tuple(np.insert(corner, axis, 6).tolist()) for corner in corners]
    marks = build_marks(SHAPE, Prompts(curves=[curve]))
    on = np.argwhere(marks == FOREGROUND)
    assert len(on) == 7 * 5
    assert (on[:, axis] == 6).all()
    assert np.delete(on, axis, axis=1).min(axis=0).tolist() == [4, 5]
    off = np.argwhere(marks == BACKGROUND)
    assert len(off) == 9 * 7 - 7 * 5, "a line around it"
    assert (off[:, axis] == 6).all()


def test_an_inner_curve_leaves_its_inside_out():
    outer, inner = ([(c, c, 8), (c, 16 - c, 8), (16 - c, 16 - c, 8), (16 - c, c, 8)] for c in (1.5, 5.5))
    marks = build_marks(SHAPE, Prompts(curves=[outer, inner]))
    assert (marks == FOREGROUND).sum() == 13 * 13 - 5 * 5


def test_background_scribbles_in_a_curve_stay():
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[6, 7, 8] = BACKGROUND
    marks = build_marks(SHAPE, Prompts(marks=drawn, curves=[[(4, 5, 8), (4, 9, 8), (9, 9, 8)]]))
    assert marks[6, 7, 8] == BACKGROUND
    assert marks[5, 8, 8] == FOREGROUND
