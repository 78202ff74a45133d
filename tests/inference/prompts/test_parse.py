"""Every form in which 3D Slicer and OHIF send prompts is understood; what cannot be meant is refused by value."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.errors import BadRequest
from rayapp.imaging import mask_codec
from rayapp.inference.infer_task import TaskInfo
from rayapp.inference.prompts.parse import MAX_CLICKS, parse_prompts

SHAPE = (10, 20, 30)
INFO = TaskInfo(type="deepedit", labels={"background": 0, "liver": 1, "spleen": 2}, dimension=3, description="")
SCRIBBLES = TaskInfo(type="scribbles", labels={}, dimension=3, description="")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def parse(**params):
    return parse_prompts(params, INFO, SHAPE)


def test_slicer_sends_one_list_per_label_even_empty_ones_and_those_of_other_models():
    prompts = parse(
        liver=[[1, 2, 3]], spleen=[], background=[[9, 19, 29]], heart=[[100, 100, 100]], label="liver",
        roi=[], reset_state=True, device=["NVIDIA A100"], largest_cc="true", client_id="x", result_extension=".nrrd",
    )  # fmt: skip
    assert prompts.clicks == {"liver": ((1, 2, 3),), "background": ((9, 19, 29),)}
    assert prompts.label == "liver"
    assert prompts.roi is None
    assert prompts.reset


@pytest.mark.parametrize(("name", "meant"), [("Liver", "liver"), ("livre", "liver"), ("SPLEEN", "spleen")])
def test_a_click_under_a_misspelt_label_is_refused_with_the_labels_and_the_one_meant(name, meant):
    for others in ({}, {"liver": [[1, 2, 3]]}):
        with pytest.raises(BadRequest, match=f"no label '{name}'.*liver, spleen: did you mean '{meant}'"):
            parse(**{name: [[8, 18, 6]], **others})


@pytest.mark.parametrize(("name", "meant"), [("Liver", "liver"), ("livre", "liver"), ("SPLEEN", "spleen")])
def test_strokes_curves_and_extreme_points_under_a_misspelt_label_are_refused_in_the_same_words(name, meant):
    curve, ends = [[1, 1, 4], [1, 5, 4], [5, 5, 4]], [[1, 5, 5], [9, 5, 5], [5, 1, 5], [5, 9, 5], [5, 5, 1], [5, 5, 9]]
    for params in (
        {"curves": [{"points": curve, "label": name}]},
        {"marks": [{"packed": strokes_at((1, (1, 1, 1))), "label": name}]},
        {"curves": [curve], "label": name},
        {"extremes": {name: ends}},
        {"extremes": {name: ends, "spleen": ends, "liver": ends}},
    ):
        with pytest.raises(BadRequest, match=f"no label '{name}'.*liver, spleen: did you mean '{meant}'"):
            parse(**params)


def test_extreme_points_that_would_all_be_dropped_are_refused_and_those_of_other_models_are_not():
    ends = [[1, 5, 5], [9, 5, 5], [5, 1, 5], [5, 9, 5], [5, 5, 1], [5, 5, 9]]
    with pytest.raises(BadRequest, match=r"no label 'heart'; its labels are liver, spleen$"):
        parse(extremes={"heart": ends, "liver": []})
    assert list(parse(extremes={"heart": ends, "liver": ends}).extremes) == ["liver"]


def test_clicks_that_would_all_be_dropped_are_refused_with_the_labels():
    with pytest.raises(BadRequest, match=r"no label 'kidney'; its labels are liver, spleen$"):
        parse(kidney=[[8, 18, 6]], liver=[])


def test_ohif_sends_background_first_and_sometimes_a_key_named_null():
    prompts = parse(background=[], liver=[[0, 0, 0], [9, 19, 29]], null=[[1, 1, 1]], result_compress=False)
    assert prompts.clicks == {"liver": ((0, 0, 0), (9, 19, 29))}


def test_single_structure_clients_send_foreground_and_a_slice():
    prompts = parse(foreground=[[1, 2, 3]], background=[[4, 5, 6]], label="liver", slice=29)
    assert prompts.clicks == {"foreground": ((1, 2, 3),), "background": ((4, 5, 6),)}
    assert prompts.slice == 29


def test_a_model_without_labels_takes_the_clicks_of_the_named_structure():
    any_structure = TaskInfo(type="deepgrow", labels={}, dimension=3, description="")
    sent = {"label": "liver", "liver": [[1, 2, 3]], "spleen": [[4, 5, 6]], "background": [[7, 8, 9]]}
    clicks = parse_prompts(sent, any_structure, SHAPE).clicks
    assert clicks == {"liver": ((1, 2, 3),), "background": ((7, 8, 9),)}
    unlike = {"label": "roi", "roi": [0, 3, 0, 3, 0, 3], "foreground": [[1, 2, 3]]}
    assert parse_prompts(unlike, any_structure, SHAPE).clicks == {"foreground": ((1, 2, 3),)}


def test_nothing_at_all_means_automatic():
    prompts = parse()
    assert not prompts.clicks
    assert prompts.label is prompts.roi is prompts.slice is None
    assert not prompts.reset


def test_null_values_mean_absent():
    assert parse(liver=None, label=None, roi=None, slice=None, reset_state=None) == parse()


def test_whole_numbers_may_come_as_floats():
    assert parse(liver=[[1.0, 2, 12.0]]).clicks == {"liver": ((1, 2, 12),)}


@pytest.mark.parametrize(
    "click",
    [[10, 0, 0], [0, 20, 0], [0, 0, 30], [-1, 0, 0], [1, 2], [1, 2, 3, 4], [], "1,2,3", [1.5, 2, 3], [True, 2, 3],
     [None, 2, 3], ["1", 2, 3], 7, None, {"i": 1}, [float("nan"), 1, 1], [float("inf"), 1, 1], [[1], 2, 3]],
)  # fmt: skip
def test_a_click_that_is_no_voxel_of_the_image_is_refused_with_its_value(click):
    with pytest.raises(BadRequest) as refused:
        parse(liver=[[1, 1, 1], click])
    assert repr(click) in refused.value.detail
    assert "liver" in refused.value.detail


@pytest.mark.parametrize("value", ["x", 5, True, {"0": [1, 2, 3]}, 1.5])
def test_clicks_that_are_no_list_are_refused(value):
    with pytest.raises(BadRequest, match="spleen"):
        parse(spleen=value)


def test_a_flipped_roi_is_sorted_and_clipped_to_the_image():
    assert parse(roi=[8, 2, 40, 5, -3, 12]).roi == ((2, 5, 0), (9, 20, 13))


@pytest.mark.parametrize("roi", [[1, 2, 3], "all", [1, 2, 3, 4, 5, "6"], [50, 60, 0, 5, 0, 5], [0.5, 1, 2, 3, 4, 5], 3])
def test_a_roi_that_is_no_box_in_the_image_is_refused(roi):
    with pytest.raises(BadRequest, match="roi"):
        parse(roi=roi)


@pytest.mark.parametrize("params", [{"slice": 30}, {"slice": -1}, {"slice": "3"}, {"label": 3}, {"reset_state": [1]}])
def test_other_values_of_the_wrong_kind_are_refused(params):
    with pytest.raises(BadRequest):
        parse(**params)


def test_a_flood_of_clicks_is_refused():
    with pytest.raises(BadRequest, match=str(MAX_CLICKS)):
        parse(liver=[[1, 1, 1]] * (MAX_CLICKS + 1))


KEYS = ["curves", "extremes", "marks", "start", "liver", "background", "foreground", "roi", "slice", "label", "null"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_json_is_either_understood_or_refused(params):
    try:
        prompts = parse_prompts(params, INFO, SHAPE)
    except BadRequest:
        return
    for points in prompts.clicks.values():
        assert points
        assert all(0 <= at < n for point in points for at, n in zip(point, SHAPE, strict=True))


@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), min_size=1, max_size=20))
def test_clicks_inside_the_image_arrive_as_they_were_sent(points):
    assert parse(spleen=[list(point) for point in points]).clicks["spleen"] == tuple(points)


@given(st.tuples(*(st.integers(-5, n + 5) for n in SHAPE for _ in range(2))))
def test_a_roi_holds_every_voxel_between_its_ends(ends):
    try:
        roi = parse(roi=list(ends)).roi
    except BadRequest:
        return
    low, high = roi
    for axis, n in enumerate(SHAPE):
        first, last = sorted(ends[2 * axis : 2 * axis + 2])
        assert list(range(low[axis], high[axis])) == [at for at in range(n) if first <= at <= last]


def test_closed_curves_are_lists_of_points_on_one_slice():
    curve = [[1, 2, 3], [4, 2, 3], [4, 5, 3]]
    found = (tuple(map(tuple, curve)),)
    assert parse_prompts({"curves": [curve]}, SCRIBBLES, SHAPE).curves == found
    assert parse_prompts({"curves": None}, SCRIBBLES, SHAPE).curves == ()
    for params in ({"curves": [curve], "label": "spleen"}, {"curves": [{"points": curve, "label": "spleen"}]}):
        drawings = parse(**params).drawings
        assert (list(drawings), drawings["spleen"].curves) == (["spleen"], found)


def test_points_of_curves_may_lie_between_voxel_centres():
    curve = [[1.25, 2.5, 3], [4.75, -0.5, 3], [SHAPE[0] - 0.5, 5.125, 3]]
    assert parse_prompts({"curves": [curve]}, SCRIBBLES, SHAPE).curves == (tuple(map(tuple, curve)),)


@pytest.mark.parametrize("at", [3.5, -0.6, float("nan"), float("inf"), "3", True, None])
def test_the_slice_of_a_curve_is_a_whole_index_inside_the_image(at):
    with pytest.raises(BadRequest, match="curve"):
        parse_prompts({"curves": [[[1.5, 2, at], [4, 2.5, at], [4, 5, at]]]}, SCRIBBLES, SHAPE)


def strokes_at(*points):
    marks = np.zeros(SHAPE, np.uint8)
    for mark, point in points:
        marks[point] = mark
    return mask_codec.to_text(marks)


def test_strokes_hold_over_the_clicks_before_them_and_later_clicks_over_strokes():
    packed = strokes_at((1, (1, 1, 1)), (1, (2, 2, 2)), (2, (3, 3, 3)), (2, (4, 4, 4)))
    params = {
        "liver": [[1, 1, 1], [3, 3, 3], [5, 5, 5], [2, 2, 2]],
        "spleen": [[4, 4, 4], [3, 3, 3]],
        "background": [[4, 4, 4]],
        "marks": [{"label": "liver", "packed": packed, "after": {"liver": 3, "spleen": 1}}],
    }
    prompts = parse(**params)
    assert prompts.clicks == {
        "liver": ((3, 3, 3), (5, 5, 5), (2, 2, 2)),
        "spleen": ((3, 3, 3),),
        "background": ((4, 4, 4),),
    }
    assert parse(**{**params, "marks": [{"label": "liver", "packed": packed}]}).clicks["liver"][0] == (1, 1, 1)


@pytest.mark.parametrize("after", [3, [1], {"liver": "x"}, {"liver": 1.5}])
def test_numbers_of_clicks_before_strokes_are_whole(after):
    with pytest.raises(BadRequest, match="after"):
        parse(marks=[{"label": "liver", "packed": strokes_at((1, (1, 1, 1))), "after": after}])


@pytest.mark.parametrize(
    "curves",
    [3, [3], [[[1, 2, 3], [4, 2, 3]]], [[[1, 2, 3], [4, 3, 4], [5, 4, 2]]], [[[1, 2, 99], [4, 2, 3], [0, 0, 0]]]],
)
def test_curves_that_are_none_are_refused(curves):
    with pytest.raises(BadRequest):
        parse_prompts({"curves": curves}, SCRIBBLES, SHAPE)


def test_a_size_is_of_all_clicks_or_by_their_number():
    clicks = {"liver": [[1, 2, 3], [2, 2, 3]], "background": [[4, 5, 6]]}
    assert parse(**clicks, size=1).sizes == parse(**clicks, size="1").sizes == {2: 1}
    assert parse(**clicks, size={"1": -2, "2": 0}).sizes == {1: -2}
    assert parse(**clicks, size="0").sizes == parse(**clicks).sizes == {}
    for wrong in ("huge", 1.5, [1], {"x": 1}, True):
        with pytest.raises(BadRequest, match="size must be a whole number"):
            parse(**clicks, size=wrong)
