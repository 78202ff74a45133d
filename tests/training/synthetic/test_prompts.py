"""Simulated people prompt on the structure, and correct where the answer is wrong."""

import numpy as np
import pytest

from rayapp.training.synthetic import prompts

SPACING = np.array([1.0, 1.0, 3.0])


def ball():
    places = np.moveaxis(np.indices((60, 50, 24)), 0, -1) * SPACING
    return np.linalg.norm(places - (30, 25, 36), axis=-1) < 14


@pytest.mark.parametrize("seed", range(40))
def test_what_is_given_for_a_structure_lies_on_it_or_around_it(seed):
    mask = ball()
    marks = prompts.first(np.random.default_rng(seed), mask, SPACING)
    for place in marks.include:
        assert mask[tuple(np.rint(place / SPACING).astype(int))]
    for stroke in marks.strokes:
        voxels = np.rint(stroke / SPACING).astype(int)
        assert mask[tuple(voxels.T)].mean() > 0.9
    for ring in marks.erasers:
        voxels = np.rint(ring / SPACING).astype(int)
        assert not mask[tuple(voxels.T)].any()
    assert marks.bounds() is not None


def test_every_kind_of_prompt_is_given():
    seen = set()
    for seed in range(120):
        marks = prompts.first(np.random.default_rng(seed), ball(), SPACING)
        seen |= {name for name in ("include", "strokes", "erasers", "boxes", "lassos") if getattr(marks, name)}
    assert seen == {"include", "strokes", "erasers", "boxes", "lassos"}


def test_a_correction_is_in_the_middle_of_the_largest_error():
    truth = ball()
    answer = truth.copy()
    answer[30:] = False
    answer[5:8, 5:8, 3:5] = True
    at, included = prompts.correction(None, truth, answer, SPACING)
    assert included
    assert truth[tuple(at)]
    assert not answer[tuple(at)]
    at, included = prompts.correction(None, truth, truth | (np.indices(truth.shape)[0] < 10), SPACING)
    assert not included
    assert at[0] < 10


def test_nothing_is_corrected_in_a_right_answer():
    assert prompts.correction(None, ball(), ball(), SPACING) is None


def test_the_middle_is_the_deepest_voxel():
    np.testing.assert_array_equal(prompts.middle(ball(), SPACING), (30, 25, 12))
