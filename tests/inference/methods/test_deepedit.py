"""DeepEdit obeys: a clicked voxel carries its label, and a background click only takes away."""

import numpy as np
import pytest

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.phantom import ORGANS
from rayapp.inference.infer_task import Prompts, StagedTask
from rayapp.inference.methods.deepedit import DeepEditTask, enforce_clicks
from rayapp.training import click_simulation
from rayapp.training.metrics import dice
from tests.inference.grids import turned, turned_labels, turned_point
from tests.inference.shipped_models import changed, shipped


def edit(task, prepared, label=None, **clicks):
    return task.predict(prepared, Prompts(clicks=clicks, label=label), {}).labels


def random_points(rng, shape, count):
    return [tuple(int(n) for n in point) for point in rng.integers(0, shape, (count, 3))]


@pytest.fixture(scope="module")
def prepared(deepedit, cases):
    return deepedit.prepare(cases[0][0])


@pytest.fixture(scope="module")
def automatic(deepedit, prepared):
    return edit(deepedit, prepared)


def test_without_clicks_it_segments_by_itself(deepedit, cases):
    scores = [dice(edit(deepedit, deepedit.prepare(volume)), truth.array, 5) for volume, truth in cases]
    assert np.nanmean(scores) >= 0.85


def test_background_is_listed_so_that_slicer_sends_its_clicks(deepedit):
    assert deepedit.info.type == "deepedit"
    assert deepedit.info.labels == {"background": 0, **ORGANS}


@pytest.mark.parametrize("name", ["background", *ORGANS])
def test_a_single_click_anywhere_is_obeyed(deepedit, prepared, name):
    for point in random_points(np.random.default_rng(len(name)), prepared.grid.source, 3):
        assert edit(deepedit, prepared, **{name: [point]})[point] == deepedit.info.labels[name]


def test_nothing_is_outside_the_box_not_even_a_click(deepedit, prepared):
    low, inside, high = ([int(share * n) for n in prepared.grid.source] for share in (0.3, 0.45, 0.6))
    clicks = {"liver": [tuple(inside), tuple(high)]}
    labels = deepedit.predict(prepared, Prompts(clicks=clicks, roi=(tuple(low), tuple(high))), {}).labels
    assert labels[tuple(inside)] == ORGANS["liver"]
    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 0
    assert not labels.any()


def test_many_clicks_close_together_are_all_obeyed(deepedit, prepared):
    rng = np.random.default_rng(0)
    near = np.array(prepared.grid.source) // 2 + rng.integers(-8, 8, (240, 3))
    points = list(dict.fromkeys(tuple(int(n) for n in point) for point in near))
    names = ["background", *ORGANS]
    clicks = {name: points[n :: len(names)] for n, name in enumerate(names)}
    labels = edit(deepedit, prepared, **clicks)
    for name, at in clicks.items():
        assert all(labels[point] == deepedit.info.labels[name] for point in at)


def test_a_click_changes_more_than_its_voxel(deepedit, prepared, automatic):
    rng = np.random.default_rng(1)
    regions = [click_simulation.largest_component(automatic, value) for value in (0, *ORGANS.values())]
    for point in [region.click(rng) for region in regions if region is not None and region.size > 100]:
        labels = edit(deepedit, prepared, spleen=[point])
        around = tuple(slice(at - 1, at + 2) for at in point)
        assert (labels[around] == ORGANS["spleen"]).sum() >= 5, point


def test_background_clicks_only_take_away(deepedit, prepared, automatic):
    rng = np.random.default_rng(2)
    inside = np.argwhere(automatic > 0)
    for point in [*random_points(rng, automatic.shape, 3), *map(tuple, rng.choice(inside, 3))]:
        point = tuple(int(at) for at in point)
        labels = edit(deepedit, prepared, background=[point])
        assert labels[point] == 0
        np.testing.assert_array_equal(labels[labels > 0], automatic[labels > 0])


def test_background_clicks_only_take_away_from_what_other_clicks_gave(deepedit, prepared):
    rng = np.random.default_rng(3)
    clicks = {
        "liver": random_points(rng, prepared.grid.source, 2),
        "stomach": random_points(rng, prepared.grid.source, 2),
    }
    before = edit(deepedit, prepared, **clicks)
    after = edit(deepedit, prepared, **clicks, background=random_points(rng, prepared.grid.source, 3))
    np.testing.assert_array_equal(after[after > 0], before[after > 0])


def test_what_was_asked_before_does_not_matter(deepedit, prepared, cases):
    clicks = {"liver": [(30, 40, 20)], "background": [(35, 30, 25)]}
    edit(deepedit, prepared, spleen=[(5, 5, 5)])
    used = edit(deepedit, prepared, **clicks)
    np.testing.assert_array_equal(used, edit(deepedit, deepedit.prepare(cases[0][0]), **clicks))


def test_a_click_means_the_same_place_on_a_turned_grid(deepedit, cases, prepared):
    order, flips = (2, 0, 1), (True, False, True)
    shape = prepared.grid.source
    points = {"spleen": [(20, 61, 33)], "liver": [(50, 22, 40)]}
    moved = {name: [turned_point(point, shape, order, flips) for point in at] for name, at in points.items()}
    again = edit(deepedit, deepedit.prepare(turned(cases[0][0], order, flips)), **moved)
    assert (again != turned_labels(edit(deepedit, prepared, **points), order, flips)).mean() < 1e-4


def test_corrections_do_not_make_it_worse(deepedit, cases):
    rng = np.random.default_rng(4)
    for volume, truth in cases[:2]:
        image = deepedit.prepare(volume)
        before = edit(deepedit, image)
        names, clicks = ["background", *ORGANS], {}
        for region in click_simulation.error_regions(truth.array, before, len(names), count=5):
            clicks.setdefault(names[region.label], []).append(region.click(rng))
        after = edit(deepedit, image, **clicks)
        assert np.nanmean(dice(after, truth.array, 5)) >= np.nanmean(dice(before, truth.array, 5)) - 0.005


def test_foreground_clicks_mean_the_named_structure_or_are_refused(deepedit, prepared):
    point = (30, 40, 20)
    assert edit(deepedit, prepared, label="spleen", foreground=[point])[point] == ORGANS["spleen"]
    with pytest.raises(BadRequest, match="liver"):
        edit(deepedit, prepared, foreground=[point])
    with pytest.raises(BadRequest, match="label"):
        edit(deepedit, prepared, label="heart", foreground=[point])


def test_any_image_costs_the_same_voxels(deepedit, cases):
    fine = deepedit.prepare(cases[1][0]).grid.padded
    assert all(n <= most for n, most in zip(fine, shipped("deepedit").card["roi_size"], strict=True))


def test_its_memory_counts_what_it_will_remember(deepedit, prepared):
    assert prepared.nbytes >= prepared.image.nbytes * (1 + len(ORGANS))


def test_a_card_whose_network_has_no_room_for_its_clicks_is_refused():
    network = {**shipped("deepedit").card["network"], "in_channels": 3}
    task = DeepEditTask.from_version(changed(shipped("deepedit"), network=network))
    with pytest.raises(ModelBroken, match="in_channels"):
        task.load()


def test_of_two_clicks_on_one_voxels_border_the_nearest_decides():
    log_odds = np.full((2, 6, 6, 6), -4.0, np.float32)
    image = np.random.default_rng(0).uniform(-2, 2, (6, 6, 6)).astype(np.float32)  # nothing looks like its neighbour
    held = enforce_clicks(log_odds, [[(2.4, 2.0, 2.0)], [(2.6, 2.0, 2.0)], []], image)
    assert held[0, 2, 2, 2] > 0 > held[1, 2, 2, 2]
    assert held[1, 3, 2, 2] > 0 > held[0, 3, 2, 2]


def test_a_click_reaches_into_tissue_like_its_own_and_no_other():
    log_odds = np.full((1, 9, 9, 9), -4.0, np.float32)
    image = np.zeros((9, 9, 9), np.float32)
    image[5:] = 1.0
    marked = enforce_clicks(log_odds, [[(4.0, 4.0, 4.0)], []], image)[0] > 0
    assert marked[3:5, 4, 4].all()
    assert marked[4, 3:6, 4].all()
    assert not marked[5:].any()
    assert 5 <= marked.sum() <= 19


def test_its_last_stage_is_what_it_predicts(deepedit, prepared):
    assert isinstance(deepedit, StagedTask)
    prompts = Prompts(clicks={"liver": [(30, 40, 20)]})
    *_, last = deepedit.stages(prepared, prompts, {})
    np.testing.assert_array_equal(last.labels, deepedit.predict(prepared, prompts, {}).labels)


def test_once_an_image_was_segmented_without_clicks_its_first_click_costs_no_more_than_its_second(
    deepedit, cases, monkeypatch
):
    prepared = deepedit.prepare(cases[0][0])
    asked, infer = [], deepedit._infer
    monkeypatch.setattr(deepedit, "_infer", lambda images: asked.append(1) or infer(images))
    for clicks, times in (({}, 1), ({"liver": [(30, 30, 30)]}, 1), ({"liver": [(30, 30, 30), (20, 30, 30)]}, 1)):
        asked.clear()
        deepedit.predict(prepared, Prompts(clicks=clicks), {})
        assert len(asked) == times
