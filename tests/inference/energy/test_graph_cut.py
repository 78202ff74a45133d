"""Both optimisers: borders run along edges, marks hold, spacing counts."""

import itertools

import numpy as np
import pytest

from rayapp.inference.energy.graph_cut import EDGE_SCALE, SMOOTHNESS, graph_cut
from rayapp.inference.energy.random_walk import random_walk
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND

SHAPE = (14, 18, 11)
EVEN = np.ones(3)


def scene():
    """A bright block in the dark, its voxels, and marks on one voxel of each."""
    inside = np.zeros(SHAPE, bool)
    inside[3:10, 4:15, 2:8] = True
    image = np.where(inside, 1.0, -1.0).astype(np.float32)[None]
    marks = np.zeros(SHAPE, np.uint8)
    marks[6, 8, 5], marks[0, 0, 0] = FOREGROUND, BACKGROUND
    return inside, image, marks


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
def test_doubtful_voxels_follow_the_edges_to_the_marks(optimise):
    inside, image, marks = scene()
    np.testing.assert_array_equal(optimise(np.zeros(SHAPE, np.float32), image, marks, EVEN), inside)


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
@pytest.mark.parametrize("logit", [-50.0, 50.0])
def test_marks_hold_against_everything(optimise, logit):
    _, image, marks = scene()
    mask = optimise(np.full(SHAPE, logit, np.float32), image, marks, EVEN)
    assert mask[6, 8, 5]
    assert not mask[0, 0, 0]


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
def test_where_all_is_marked_the_marks_are_the_answer(optimise):
    inside, image, _ = scene()
    marks = np.where(inside, FOREGROUND, BACKGROUND).astype(np.uint8)
    np.testing.assert_array_equal(optimise(np.zeros(SHAPE, np.float32), image, marks, EVEN), inside)


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
def test_a_slice_is_worked_on_as_a_volume_is(optimise):
    inside, image, marks = scene()
    mask = optimise(np.zeros(SHAPE[:2], np.float32), image[..., 5], np.maximum(marks[..., 5], marks[..., 0]), EVEN[:2])
    np.testing.assert_array_equal(mask, inside[..., 5])


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
def test_without_any_mark_the_log_odds_decide(optimise):
    image, marks = np.zeros((1, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)
    logits = np.full(SHAPE, -3.0, np.float32)
    assert not optimise(logits, image, marks, EVEN).any()
    assert optimise(-logits, image, marks, EVEN).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_labelling_of_all_is_cheaper(seed):
    rng, shape, spacing = np.random.default_rng(seed), (2, 3, 2), np.array((2.0, 1.5, 3.0))
    image = rng.normal(0, 0.15, (2, *shape)).astype(np.float32)
    logits = rng.normal(0, 6, shape).astype(np.float32)
    marks = np.zeros(shape, np.uint8)
    marks[0, 0, 0], marks[1, 2, 1], logits[1, 0, 0], logits[0, 2, 0] = FOREGROUND, BACKGROUND, -np.inf, np.inf
    certain = {(0, 0, 0): True, (1, 2, 1): False, (1, 0, 0): False, (0, 2, 0): True}
    every = np.array(list(itertools.product((False, True), repeat=12))).reshape(-1, *shape)
    every = every[np.all([every[:, *at] == label for at, label in certain.items()], axis=0)]
    costs = np.where(every, 0, np.nan_to_num(logits, posinf=0, neginf=0)).sum((1, 2, 3))
    for axis in range(3):
        alike = np.exp(-np.square(np.diff(image, axis=axis + 1)).mean(0) / (2 * EDGE_SCALE**2))
        costs += (SMOOTHNESS / spacing[axis] * alike * np.diff(every, axis=axis + 1)).sum((1, 2, 3))
    np.testing.assert_array_equal(graph_cut(logits, image, marks, spacing), every[costs.argmin()])


def test_neighbours_that_lie_far_apart_hold_together_less():
    image, marks = np.zeros((1, 9, 9, 9), np.float32), np.zeros((9, 9, 9), np.uint8)
    logits = np.full((9, 9, 9), -3.0, np.float32)
    logits[:, :, 4] = 6.0
    assert not graph_cut(logits, image, marks, EVEN).any()
    apart = graph_cut(logits, image, marks, np.array((1.0, 1.0, 8.0)))
    np.testing.assert_array_equal(apart, logits > 0)


@pytest.mark.parametrize("mm", [0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_a_slab_is_kept_at_any_voxel_size_or_at_none(mm):
    """Its border costs what its log-odds are worth in mm, not in voxels."""
    size, thick = round(36 / mm), round(12 / mm)
    for log_odds, stays in ((2.0, True), (1.0, False)):
        slab = np.zeros((size, 9, 9), bool)
        slab[size // 3 : size // 3 + thick] = True
        logits = np.where(slab, log_odds, -log_odds).astype(np.float32)
        image, marks = np.zeros((1, *slab.shape), np.float32), np.zeros(slab.shape, np.uint8)
        mask = graph_cut(logits, image, marks, np.full(3, mm))
        np.testing.assert_array_equal(mask, slab & stays)


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
@pytest.mark.parametrize("thickness", [1.0, 2.0, 5.0, 8.0])
def test_an_edge_is_an_edge_across_thick_slices_too(optimise, thickness):
    inside, image, marks = scene()
    noisy = image + np.random.default_rng(0).normal(0, 0.1, image.shape).astype(np.float32)
    mask = optimise(np.zeros(SHAPE, np.float32), noisy, marks, np.array((1.0, 1.0, thickness)))
    np.testing.assert_array_equal(mask, inside)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (2.0, 5.0), (6.0, 1.5)])
def test_walks_are_as_long_in_mm_across_slices_as_within_them(spacing):
    """Between seeds along two sides of a square, in tissue of one intensity, the border is the diagonal."""
    x, z = (np.arange(round(30 / mm)) * mm for mm in spacing)
    shape = len(x), len(z)
    marks = np.zeros(shape, np.uint8)
    marks[0], marks[:, 0] = FOREGROUND, BACKGROUND
    mask = random_walk(np.zeros(shape, np.float32), np.zeros((1, *shape), np.float32), marks, np.array(spacing))
    nearer = np.subtract.outer(x, z)
    clear = (np.abs(nearer) > max(spacing)) & (marks == 0)
    np.testing.assert_array_equal(mask[clear], nearer[clear] < 0)


@pytest.mark.parametrize("optimise", [graph_cut, random_walk])
@pytest.mark.parametrize("channels", [1, 4, 20])
def test_noise_in_many_channels_is_no_border(optimise, channels):
    image = np.random.default_rng(1).normal(0, 0.1, (channels, *SHAPE)).astype(np.float32)
    logits = np.where(np.random.default_rng(2).random(SHAPE) < 0.9, 1.0, -1.0).astype(np.float32)
    mask = optimise(logits, image, np.zeros(SHAPE, np.uint8), EVEN)
    assert mask.all() if optimise is graph_cut else mask.mean() > 0.85


def test_all_channels_count():
    inside, image, marks = scene()
    flat = np.zeros_like(image)
    mask = graph_cut(np.zeros(SHAPE, np.float32), np.concatenate([flat, image]), marks, EVEN)
    np.testing.assert_array_equal(mask, inside)
