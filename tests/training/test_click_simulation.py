"""The simulated annotator clicks into what is most wrong; the network is shown its clicks as inference shows them."""

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import ndimage

from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.models.networks import build, save_weights
from rayapp.training import click_simulation
from rayapp.training.clicks import with_guidance, with_guidance_batch
from rayapp.training.deepedit_train import DeepEditTrainTask, annotate
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.feed import Batch
from rayapp.training.options import ClickOptions
from tests.training.blobs import LABELS, NETWORK, blob


def scene():
    truth = np.zeros((30, 24, 17), np.uint8)
    truth[3:15, 4:14, 5:12] = 1
    truth[20:26, 15:21, 3:8] = 2
    guess = truth.copy()
    guess[8:15, 4:14, 5:12] = 0  # a large part of 1 missed
    guess[20:26, 3:8, 10:14] = 2  # 2 where there is nothing
    return truth, guess


def test_the_largest_errors_come_first_each_with_the_label_it_should_have():
    truth, guess = scene()
    found = click_simulation.error_regions(truth, guess, 3, count=9)
    assert [(region.label, region.size) for region in found] == [(1, 7 * 10 * 7), (0, 6 * 5 * 4)]
    assert click_simulation.error_regions(truth, truth, 3, count=9) == []


def test_an_error_between_structures_asks_for_the_right_one():
    truth, guess = scene()
    guess = np.where(truth == 2, 1, truth)
    assert [region.label for region in click_simulation.error_regions(truth, guess, 3, count=9)] == [2]


@pytest.mark.parametrize("seed", range(5))
def test_a_click_lies_deep_inside_its_region(seed):
    truth, guess = scene()
    regions = click_simulation.error_regions(truth, guess, 3, count=9)
    assert regions
    for region in regions:
        place = region.click(np.random.default_rng(seed))
        wrong = (truth != guess) & (truth == region.label)
        depth = ndimage.distance_transform_edt(wrong)
        assert depth[place] >= click_simulation.MIN_DEPTH * depth.max()


@pytest.mark.parametrize("seed", range(3))
def test_an_annotator_clicks_into_the_middle(seed):
    truth, guess = scene()
    rng = np.random.default_rng(seed)
    (_, (x, y, z)), *_ = click_simulation.corrections(truth, guess, 3, count=1, rng=rng, min_depth=1.0)
    depth = ndimage.distance_transform_edt((truth == 1) & (guess != 1))
    assert depth[int(x), int(y), int(z)] == depth.max()


def test_a_noisy_click_misses_and_stays_on_the_grid():
    truth, guess = scene()
    rng = np.random.default_rng(0)
    (region, *_) = click_simulation.error_regions(truth, guess, 3, count=9)
    exact = {region.click(rng) for _ in range(200)}
    noisy = [click_simulation.clamped(region.click(rng, noise=6), truth.shape) for _ in range(200)]
    assert len(set(noisy) - exact) > 100
    assert all(0 <= at < n for place in noisy for at, n in zip(place, truth.shape, strict=True))


def test_a_click_into_a_slice_stays_in_it():
    truth, guess = scene()
    rng = np.random.default_rng(1)
    (region,) = click_simulation.error_regions(truth[:, :, 6:7], guess[:, :, 6:7], 3, count=9)
    assert {region.click(rng, noise=4)[2] for _ in range(20)} == {0}


def test_a_small_structure_that_was_missed_is_corrected_more_often_than_the_edge_of_a_large_one():
    truth = np.zeros((40, 40, 40), np.uint8)
    truth[2:32, 2:32, 2:32] = 1
    truth[35:38, 35:38, 35:38] = 2
    guess = truth.copy()
    guess[31:32, 2:32, 2:32] = 0  # a layer of 900 voxels missed: Dice .98
    guess[truth == 2] = 0  # all of 27 voxels missed: Dice 0
    drawn = [
        region.label
        for seed in range(50)
        for region in click_simulation.drawn_regions(truth, guess, 3, count=1, rng=np.random.default_rng(seed))
    ]
    assert len(drawn) == 50
    assert drawn.count(2) >= 45


def test_regions_drawn_for_a_structure_are_what_is_missed_or_too_much_of_it_each_once():
    truth, guess = scene()
    rng = np.random.default_rng(0)
    regions = list(click_simulation.drawn_regions(truth, guess, 3, count=9, rng=rng))
    assert sorted((region.label, region.size) for region in regions) == [(0, 6 * 5 * 4), (1, 7 * 10 * 7)]
    assert list(click_simulation.drawn_regions(truth, truth, 3, count=9, rng=rng)) == []


def test_what_is_too_much_of_a_structure_is_given_to_the_structure_it_belongs_to():
    truth, _ = scene()
    guess = np.where(truth == 2, 1, truth)
    for seed in range(9):
        rng = np.random.default_rng(seed)
        (region,) = click_simulation.drawn_regions(truth, guess, 3, count=4, rng=rng)
        assert region.label == 2


@pytest.mark.parametrize("trainer", ["deepedit", "deepgrow"])
def test_the_first_clicks_come_one_by_one_and_few_rounds_are_likelier_than_many(trainer):
    if trainer == "deepedit":
        task, whole, network = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions()), batch(1), None
    else:
        task = DeepGrowTrainTask(description="", options=ClickOptions())
        labels = torch.from_numpy(scene()[0][None] == 1).to(torch.uint8)
        whole, network = Batch(images=labels[:, None].float(), labels=labels), outlining_no_foreground
    counts = []
    for seed in range(80):
        shown = inputs_of(task, whole, network or outlining_nothing, seed)
        counts.append(int((shown[0, 1:] == 1).sum()))
    once = counts.count(1)
    assert once >= 0.2 * sum(count > 0 for count in counts)
    assert once > counts.count(2) > 0
    assert max(counts) > 4


def outlining_no_foreground(images):
    logits = torch.zeros(len(images), 2, *images.shape[2:])
    logits[:, 0] = 1
    return logits


def test_all_workers_make_as_many_rounds_in_a_step():
    task = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions())
    for seed in range(10):
        looks = []
        for rank in range(2):
            network = Mock(side_effect=outlining_nothing)
            rng, common = np.random.default_rng((seed, rank)), np.random.default_rng(seed)
            task.inputs(batch(1), network, task.options, rng, common=common)
            looks.append(network.call_count)
        assert looks[0] == looks[1]


def deepedit(tmp_path, spacing):
    torch.manual_seed(0)
    network = {**NETWORK, "in_channels": 4, "out_channels": 3}
    save_weights(build(network), tmp_path / "w.safetensors")
    return DeepEditTask(
        name="deepedit",
        weights=tmp_path / "w.safetensors",
        labels=LABELS,
        network=network,
        spacing=spacing,
        roi_size=(16, 16, 16),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [0.0, 2.1])
def test_training_and_inference_show_the_network_the_same_channels_for_the_same_clicks(tmp_path, seed, spacing):
    volume, _ = blob(seed)
    task = deepedit(tmp_path, spacing)
    prepared = task.prepare(volume)
    points = {"ball": [(3, 18, 5), (20, 2, 16)], "rod": [(11, 11, 9)], "background": [(25, 0, 0)]}
    seen = []
    task.load()
    task._network._network.register_forward_pre_hook(lambda _, images: seen.append(images[0].clone()))
    task.predict(prepared, Prompts(clicks=points), {})
    clicks = [prepared.grid.positions(points[name]) for name in ("ball", "rod", "background")]
    shown = with_guidance(prepared.image, clicks)
    assert shown.shape[0] == 4
    assert all(channel.any() for channel in shown[1:])
    assert any(np.array_equal(images[0], shown) for images in seen)


def inputs_of(task, whole, network, seed):
    rng, common = np.random.default_rng((seed, 1)), np.random.default_rng(seed)
    return task.inputs(whole, network, task.options, rng, common=common)


def batch(count=4):
    truth, _ = scene()
    labels = torch.from_numpy(np.stack([truth] * count))
    return Batch(images=labels[:, None].float(), labels=labels)


def outlining_nothing(images):
    logits = torch.zeros(len(images), 3, *images.shape[2:])
    logits[:, 0] = 1
    return logits


def test_half_of_deepedits_steps_show_no_clicks_and_the_others_clicks_into_the_errors():
    task = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions(click_noise=0))
    whole = batch()
    empty = 0
    for seed in range(60):
        shown = inputs_of(task, whole, outlining_nothing, seed)
        assert shown.shape == (4, 4, 30, 24, 17)
        np.testing.assert_array_equal(shown[:, :1], whole.images)
        clicked = shown[:, 1:].flatten(1).any(1)
        assert clicked.all() or not clicked.any()
        empty += not clicked.any()
        for value in (1, 2):  # a structure's clicks lie in it: it was missed altogether
            peaks = np.argwhere(shown[:, value].numpy() == 1)
            assert all(whole.labels[tuple(place)] == value for place in peaks)
        assert not shown[:, 3].any()  # nothing was found that is not there
    assert 18 <= empty <= 42


def test_deepgrow_always_shows_a_click_in_the_structure_and_corrections_of_what_it_found():
    task = DeepGrowTrainTask(description="", options=ClickOptions(click_noise=0))
    truth, _ = scene()
    labels = torch.from_numpy(np.stack([truth == 1] * 3)).to(torch.uint8)
    corrected = 0
    for seed in range(30):
        shown = inputs_of(
            task,
            Batch(images=labels[:, None].float(), labels=labels),
            lambda images: torch.stack([1 - everywhere(images), everywhere(images)], 1),
            seed,
        )
        assert shown.shape[1] == 3
        for image, mask in zip(shown.numpy(), labels.numpy(), strict=True):
            assert mask[image[1] == 1].all()
            assert image[1].max() == 1
            assert not mask[image[2] == 1].any()
        corrected += bool(shown[:, 2].any())
    assert 10 <= corrected < 30


def everywhere(images):
    """A network that finds its structure in every voxel."""
    return torch.ones(len(images), *images.shape[2:])


def test_a_slices_guidance_is_that_of_a_volume_of_one_slice():
    image = torch.rand(1, 20, 15)
    clicks = [[(4.0, 5.0, 0.0)], [(10.0, 2.0, 0.0)]]
    flat = with_guidance_batch(image[None], [clicks])[0]
    np.testing.assert_array_equal(flat, with_guidance(image[..., None], clicks)[..., 0])
    assert flat.shape == (3, 20, 15)


def test_no_structure_no_click():
    task = DeepGrow2dTrainTask(description="", options=ClickOptions())
    empty = Batch(images=torch.rand(2, 1, 16, 16), labels=torch.zeros(2, 16, 16, dtype=torch.uint8))
    shown = inputs_of(task, empty, lambda x: torch.zeros(len(x), 2, 16, 16), 0)
    assert not shown[:, 1:].any()


def test_an_annotator_of_a_served_model_clicks_on_the_source_grid_and_is_obeyed(tmp_path):
    volume, labels = blob(3)
    task = deepedit(tmp_path, 1.0)
    answers = list(annotate(task, task.prepare(volume), labels, clicks=3))
    assert len(answers) == 4
    (first, *_) = click_simulation.corrections(
        labels, answers[0], 3, count=1, rng=np.random.default_rng(0), min_depth=1.0
    )
    value, place = first
    assert answers[1][tuple(int(at) for at in place)] == value


def test_options_are_the_trainers_config():
    task = DeepEditTrainTask(labels=LABELS, description="d", options=ClickOptions(rounds=2))
    assert task.info.config["rounds"] == 2
    assert task.info.labels == LABELS
    assert dataclasses.asdict(task.options) == task.info.config


@pytest.mark.parametrize("seed", range(3))
def test_a_stroke_runs_along_its_region_on_the_slice_that_shows_most_of_it(seed):
    truth = np.zeros((30, 24, 17), np.uint8)
    truth[3:25, 4:9, 6] = 1
    truth[3:6, 4:9, 7:9] = 1
    (region,) = click_simulation.error_regions(truth, np.zeros_like(truth), 2, count=1)
    line = region.stroke(np.random.default_rng(seed))
    assert set(line[:, 2]) == {6}
    assert truth[tuple(line.T)].all()
    assert np.abs(line[:, 1] - 6).max() <= 1
    assert line[:, 0].min() <= 4
    assert line[:, 0].max() >= 23
    missed = region.stroke(np.random.default_rng(seed), noise=9.0)
    assert (missed >= 0).all()
    assert set(missed[:, 2]) == {6}
    assert not np.array_equal(missed, line)
