"""Strokes on real volumes that no constant was chosen on: the quality that scribbles are there for."""

import numpy as np
import pytest

from benchmarks.scribbles import cases, in_process, strokes
from rayapp.geometry import spacing
from rayapp.inference.prompts.scribble_map import FOREGROUND
from tests.real_data import real


@pytest.mark.parametrize("method", ["Forest+GraphCut", "GMM+GraphCut", "Histogram+GraphCut"])
def test_three_stroked_slices_give_most_of_a_spleen(method):
    real("chaos_t2")
    scores = []
    for case in list(cases("spleen", tuned=False))[:2]:
        marks = strokes(case.truth, 3, spacing(case.volume.affine), case.seed)
        mask = in_process(method)(case)(marks)
        np.testing.assert_array_equal(mask[marks > 0], marks[marks > 0] == FOREGROUND)
        scores.append(2 * (mask & case.truth).sum() / (mask.sum() + case.truth.sum()))
    assert np.mean(scores) >= 0.8
