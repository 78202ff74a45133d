"""Any structure by any prompt: the rules hold whatever the network says, here one with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods import promptable_infer
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.prompts import outlines
from rayapp.inference.zoom import zoom
from rayapp.inference.zoom.glance import Mask
from rayapp.models.networks import save_weights
from rayapp.models.promptable import Promptable

NETWORK = {"name": "Promptable", "dimensions": 3, "widths": [8, 16, 16, 16], "tail": 8}
SHAPE = (60, 50, 20)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    torch.manual_seed(1)
    network = Promptable(3, NETWORK["widths"], NETWORK["tail"])
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(network, path)
    return PromptableTask(name="deepgrow_3d", weights=path, network=NETWORK, version="v1")


@pytest.fixture
def prepared(task):
    image = np.random.default_rng(0).normal(100, 20, (1, *SHAPE)).astype(np.float32)
    return task.prepare(Volume(array=image, affine=AFFINE))


def answer(task, prepared, **given):
    return task.predict(prepared, Prompts(**given), {}).labels


def test_clicked_voxels_obey(task, prepared):
    on, off = ((30, 25, 10), (33, 29, 11)), ((30, 26, 10), (12, 12, 4))
    labels = answer(task, prepared, clicks={"foreground": on, "background": off})
    assert all(labels[at] == 1 for at in on)
    assert all(labels[at] == 0 for at in off)


def test_background_clicks_only_take_away(task, prepared):
    before = answer(task, prepared, clicks={"foreground": ((30, 25, 10),)})
    after = answer(task, prepared, clicks={"foreground": ((30, 25, 10),), "background": ((35, 25, 10),)})
    assert not (after & ~before.astype(bool)).any()


def test_prompts_are_answered_in_the_order_in_which_they_were_made(task, prepared, monkeypatch):
    asked = []
    outcomes = promptable_infer.outcomes

    def noted(ask, source, marks, *others):
        asked.append((len(marks.include), len(marks.exclude), len(marks.boxes)))
        return outcomes(ask, source, marks, *others)

    monkeypatch.setattr(promptable_infer, "outcomes", noted)
    box, off, on = ((20, 15, 6), (40, 35, 14)), ((33, 29, 11),), ((30, 25, 10),)
    turns = (Prompts(roi=box), Prompts(), Prompts(clicks={"background": off}), Prompts(clicks={"foreground": on}))
    clicks = {"background": off, "foreground": on}
    answer(task, prepared, roi=box, clicks=clicks, turns=turns)
    assert asked == [(0, 0, 1), (0, 1, 1), (1, 1, 1)]
    asked.clear()
    answer(task, prepared, roi=box, clicks=clicks)
    assert asked == [(1, 0, 1), (1, 1, 1)]


def test_only_what_came_last_is_asked_of_the_network_again(task, prepared, monkeypatch):
    asked = []
    outcomes = promptable_infer.outcomes
    monkeypatch.setattr(promptable_infer, "outcomes", lambda *given: (asked.append(given), outcomes(*given))[1])
    turns = []
    for count in range(9):
        turns.append(Prompts(clicks={"background" if count % 3 == 1 else "foreground": ((30 + count, 25, 10),)}))
        asked.clear()
        answer(task, prepared, clicks=turns[0].clicks, turns=turns)
        assert len(asked) == 1
    prepared.answers.clear()
    answer(task, prepared, clicks=turns[0].clicks, turns=turns)
    assert len(asked) == 1 + promptable_infer.CHAIN


def test_a_box_is_respected(task, prepared):
    labels = answer(task, prepared, roi=((20, 15, 6), (40, 35, 14)))
    outside = labels.copy()
    outside[20:40, 15:35, 6:14] = 0
    assert not outside.any()


def test_strokes_keep_their_marks(task, prepared):
    marks = np.zeros(SHAPE, np.uint8)
    marks[25:35, 25, 10] = 2
    marks[25:35, 40, 10] = 1
    labels = answer(task, prepared, marks=marks)
    assert (labels[marks == 2] == 1).all()
    assert (labels[marks == 1] == 0).all()


@pytest.mark.parametrize("axis", range(3))
def test_a_lasso_or_a_start_alone_is_enough(task, prepared, axis):
    curve = [tuple(np.insert(place, axis, 10)) for place in ([12, 8], [12, 15], [18, 15], [18, 8])]
    assert answer(task, prepared, curves=[curve]).shape == SHAPE
    start = np.zeros(SHAPE, np.uint8)
    start[20:30, 20:30, 8:12] = 1
    assert answer(task, prepared, start=start).shape == SHAPE


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_with_closed_curves_is_what_they_enclose(task, prepared, axis):
    outer = [tuple(np.insert(place, axis, 9)) for place in ([6.3, 5.2], [6.1, 14.7], [15.6, 15.2], [16.4, 6.1])]
    inner = [tuple(np.insert(place, axis, 9)) for place in ([9.3, 8.2], [9.1, 11.7], [12.6, 11.2])]
    click = tuple(int(n) for n in np.insert([2, 3], axis, 9))
    prompts = {"curves": [outer, inner], "clicks": {"foreground": (click,)}}
    wanted = outlines.enclosed([outer, inner], SHAPE)[axis, 9]
    wanted[2, 3] = True
    for stage in task.stages(prepared, Prompts(**prompts), {}):
        np.testing.assert_array_equal(stage.labels.take(9, axis), wanted)
    off = tuple(int(n) for n in np.insert([8, 7], axis, 9))
    prompts["clicks"]["background"] = (off,)
    labels = answer(task, prepared, **prompts)
    wanted[8, 7] = False
    np.testing.assert_array_equal(labels.take(9, axis), wanted)


def test_nothing_is_outside_a_box_whatever_is_clicked_or_drawn_there(task, prepared):
    marks = np.zeros(SHAPE, np.uint8)
    marks[50:55, 40, 10] = 2
    clicks = {"foreground": ((30, 25, 10), (50, 25, 10))}
    curve = [(15.0, 15.0, 8), (45.0, 15.0, 8), (45.0, 38.0, 8), (15.0, 38.0, 8)]
    labels = answer(task, prepared, clicks=clicks, marks=marks, curves=[curve], roi=((20, 15, 6), (40, 35, 14)))
    assert labels[20:40, 15:35, 8].all()
    labels[20:40, 15:35, 6:14] = 0
    assert not labels.any()


def test_the_same_prompts_have_the_same_answer_on_every_replica(task, prepared):
    clicks = ((30, 25, 10), (20, 20, 8), (40, 30, 12))
    for count in (1, 2, 3):
        warm = answer(task, prepared, clicks={"foreground": clicks[:count]})
    fresh = task.prepare(Volume(array=np.array(prepared.source.array[None]), affine=AFFINE))
    np.testing.assert_array_equal(warm, answer(task, fresh, clicks={"foreground": clicks}))


def test_answers_come_coarse_and_then_fine(task, prepared):
    stages = list(task.stages(prepared, Prompts(clicks={"foreground": ((30, 25, 10),)}, label="liver"), {}))
    assert 1 <= len(stages) <= 2
    assert all(stage.params["label_names"] == {"liver": 1} for stage in stages)


def test_larger_and_smaller_answers_are_offered(task, prepared):
    prompts = Prompts(clicks={"foreground": ((30, 25, 10),)})
    usual = task.predict(prepared, prompts, {}).params
    offered = range(-usual["smaller"], usual["larger"] + 1)
    assert usual["size"] == 0
    assert len(offered) > 1
    volumes = []
    for size in offered:
        coarse = next(iter(task.stages(prepared, replace(prompts, sizes={1: size}), {})))
        assert coarse.params["size"] == size
        volumes.append(np.count_nonzero(coarse.labels))
    assert volumes == sorted(volumes)
    last = task.predict(prepared, replace(prompts, sizes={1: 99}), {}).params
    assert (last["size"], last["larger"]) == (usual["larger"], 0)


def test_a_click_after_another_size_goes_on_from_that_answer(task, prepared, monkeypatch):
    clicks, starts = ((30, 25, 10), (20, 20, 8)), []

    def outcomes(ask, source, marks, previous, *others):
        starts.append(previous)
        return zoom.outcomes(ask, source, marks, previous, *others)

    monkeypatch.setattr(promptable_infer, "outcomes", outcomes)
    small = task.predict(prepared, Prompts(clicks={"foreground": clicks[:1]}, sizes={1: -99}), {}).labels
    for image in (prepared, task.prepare(Volume(array=np.array(prepared.source.array[None]), affine=AFFINE))):
        answer(task, image, clicks={"foreground": clicks}, sizes={1: -99})
        np.testing.assert_array_equal(starts[-1].whole(SHAPE), small == 1)


def test_nothing_pointed_at_is_a_bad_request(task, prepared):
    with pytest.raises(BadRequest, match="click on a structure"):
        answer(task, prepared, clicks={"background": ((1, 1, 1),)})


def test_a_missing_file_is_named(tmp_path):
    broken = PromptableTask(name="deepgrow_3d", weights=tmp_path / "gone.safetensors", network=NETWORK)
    with pytest.raises(ModelBroken, match=r"gone\.safetensors"):
        broken.load()


def test_a_denied_point_takes_away_the_part_around_it_alone(task, prepared, monkeypatch):
    region = (slice(10, 40), slice(10, 40), slice(5, 15))
    start = np.zeros(SHAPE, np.uint8)
    start[region] = 1
    less = np.ones((30, 30, 10), bool)
    less[:8] = less[20:] = False  # the network would take away both ends

    def outcomes(*_):
        yield zoom.Outcome(Mask(region, less), 0.9)

    monkeypatch.setattr(promptable_infer, "outcomes", outcomes)
    labels = answer(task, prepared, start=start, clicks={"background": ((12, 20, 10),)})
    assert not labels[10:18].any()
    assert labels[18:40, 10:40, 5:15].all()


@pytest.mark.parametrize("quality", [0.4, 0.9])
def test_a_poor_answer_to_a_box_is_taken_back_when_it_is_denied_in_its_middle(task, prepared, monkeypatch, quality):
    region = (slice(10, 40), slice(10, 40), slice(5, 15))
    holed = np.ones((30, 30, 10), bool)
    holed[15, 15, 5] = False

    def outcomes(ask, source, marks, *others):
        yield zoom.Outcome(Mask(region, holed if marks.denied() else np.ones_like(holed)), quality)

    monkeypatch.setattr(promptable_infer, "outcomes", outcomes)
    box, denied = ((8, 8, 4), (42, 42, 16)), {"background": ((25, 25, 10),)}
    labels = answer(task, prepared, roi=box, clicks=denied, turns=(Prompts(roi=box), Prompts(clicks=denied)))
    assert labels.any() == (quality > 0.5)


def test_an_image_with_voxels_that_are_no_numbers_stays_as_it_is(task):
    array = np.ones((1, *SHAPE), np.float32)
    array[0, 3, 4, 5] = np.nan
    assert np.isfinite(task.prepare(Volume(array=array, affine=AFFINE)).source.array).all()
    assert np.isnan(array[0, 3, 4, 5])
