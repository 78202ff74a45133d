"""The box that is worked on: exact where it is small, averaged and smooth where it is large."""

import numpy as np
import pytest

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.energy.region import Region
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND

SHAPE = (37, 29, 23)
SPACING = np.array((0.7, 0.7, 2.1))


@pytest.fixture
def coarse():
    return Region.around((3, 2, 1), (34, 27, 22), SHAPE, SPACING, max_voxels=4000)


def test_it_is_clipped_to_the_image():
    region = Region.around((-5, 2, -1), (99, 9, 7), SHAPE, SPACING)
    assert (region.lower, region.upper, region.steps) == ((0, 2, 0), (37, 9, 7), (1, 1, 1))


def test_a_small_one_holds_the_voxels_themselves():
    array = np.random.default_rng(0).integers(-1000, 2000, SHAPE, dtype=np.int16)
    region = Region.around((3, 2, 1), (34, 27, 22), SHAPE, SPACING)
    np.testing.assert_array_equal(region.image(array), array[3:34, 2:27, 1:22])


def test_a_large_one_is_averaged_along_its_finest_axes_first(coarse):
    assert np.prod(coarse.shape) <= 4000
    assert coarse.steps[2] == 1 < min(coarse.steps[:2])
    array = np.random.default_rng(1).normal(size=SHAPE)
    means = coarse.image(array)
    assert means.shape == coarse.shape
    i, j, k = coarse.steps
    part = array[coarse.box]
    assert means[1, 2, 3] == pytest.approx(part[i : 2 * i, 2 * j : 3 * j, 3 * k : 4 * k].mean(), rel=1e-5)
    last = [(n - 1) * step for n, step in zip(coarse.shape, coarse.steps, strict=True)]
    assert means[-1, -1, -1] == pytest.approx(part[last[0] :, last[1] :, last[2] :].mean(), rel=1e-5)


def test_what_is_no_number_is_as_dark_as_the_darkest():
    array = np.ones(SHAPE, np.float32)
    array[5, 6, 7], array[1, 1, 1] = np.nan, -1000
    assert Region.around((0, 0, 0), SHAPE, SHAPE, SPACING).image(array)[5, 6, 7] == -1000


def test_every_stroke_is_seen_in_its_block_and_the_majority_speaks(coarse):
    marks = np.zeros(SHAPE, np.uint8)
    marks[3, 2, 1] = marks[33, 26, 21] = FOREGROUND
    marks[20, 10, 9] = BACKGROUND
    marks[10, 10, 10] = marks[10, 10, 11] = BACKGROUND
    seen = coarse.marks(SparseLabels.of(marks))
    assert seen[0, 0, 0] == seen[-1, -1, -1] == FOREGROUND
    at = tuple((n - low) // step for n, low, step in zip((20, 10, 9), coarse.lower, coarse.steps, strict=True))
    assert seen[at] == BACKGROUND
    assert 4 <= np.count_nonzero(seen) <= 5


@pytest.mark.parametrize("beyond", [0, BACKGROUND])
@pytest.mark.parametrize(("low", "high"), [((0, 0, 0), SHAPE), ((5, 4, 3), (30, 26, 9)), ((20, 0, 8), (37, 9, 23))])
def test_the_majority_is_counted_voxel_by_voxel_also_outside_what_is_stored(coarse, low, high, beyond):
    random = np.random.default_rng(3)
    marks = SparseLabels.blank(SHAPE, low, high, beyond=beyond)
    marks.part[:] = random.choice([0, 0, 0, BACKGROUND, FOREGROUND], marks.part.shape)
    every, seen = np.asarray(marks), coarse.marks(marks)
    for block in np.ndindex(coarse.shape):
        where = tuple(
            slice(lower + at * step, min(lower + (at + 1) * step, upper))
            for at, step, lower, upper in zip(block, coarse.steps, coarse.lower, coarse.upper, strict=True)
        )
        on, off = (np.count_nonzero(every[where] == mark) for mark in (FOREGROUND, BACKGROUND))
        assert seen[block] == (0 if on + off == 0 else FOREGROUND if on >= off else BACKGROUND)


def test_a_coarse_mask_comes_back_without_a_shift(coarse):
    index = np.indices(SHAPE)
    centre = np.array((18.0, 14.0, 11.0)).reshape(3, 1, 1, 1)
    ball = (((index - centre) * SPACING.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 7.0**2
    labels = np.zeros(SHAPE, np.uint8)
    coarse.restore(coarse.image(ball.astype(np.float32)) > 0.5, labels)
    assert 2 * (labels & ball).sum() / (labels.sum() + ball.sum()) > 0.92
    np.testing.assert_allclose(np.argwhere(labels).mean(axis=0), centre.ravel(), atol=0.25)


def test_an_empty_mask_changes_nothing(coarse):
    labels = np.zeros(SHAPE, np.uint8)
    coarse.restore(np.zeros(coarse.shape, bool), labels)
    assert not labels.any()
