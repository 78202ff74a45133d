"""Dice as it is meant: a structure found where none is costs, one that neither has does not count."""

import math

import numpy as np
import pytest

from rayapp.training.metrics import Tally, dice, key_metric


def test_dice_is_twice_the_overlap_by_the_sum():
    truth, found = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[:2], found[1:3] = 1, 1
    truth[3], found[3] = 2, 2
    assert dice(found, truth, 2) == [0.5, 1.0]


def test_what_is_found_but_not_there_scores_nothing_and_what_neither_has_does_not_count():
    empty, full = np.zeros((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.uint8)
    assert dice(full, empty, 1) == [0.0]
    assert dice(empty, full, 1) == [0.0]
    assert math.isnan(dice(empty, empty, 1)[0])


def test_means_are_over_the_cases_that_have_a_structure():
    tally = Tally(("dice", "later"), ("a", "b", "c"))
    tally.add("dice", [0.5, 1.0, math.nan])
    other = Tally(("dice", "later"), ("a", "b", "c"))
    other.add("dice", [0.7, math.nan, math.nan])
    other.add("later", [1.0, 1.0, 0.0])
    tally.merge(other)
    means = tally.means()
    assert means["dice"] == {"mean": pytest.approx(0.8), "a": pytest.approx(0.6), "b": 1.0}
    assert key_metric(means) == pytest.approx((0.8 + 2 / 3) / 2, abs=1e-4)
