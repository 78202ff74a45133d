"""Cases show a structure from close by and from afar, and turns on them go on from answers."""

import itertools

import numpy as np
import pytest

from rayapp.inference.zoom.view import Source
from rayapp.training.synthetic.examples import case, cases
from rayapp.training.synthetic.turns import ROUNDS, following, opening


@pytest.fixture(scope="module")
def some():
    return list(itertools.islice(cases(3, [32]), 12))


def test_the_same_seed_makes_the_same_cases(some):
    again = next(cases(3, [32]))
    np.testing.assert_array_equal(again.looks[0].image, some[0].looks[0].image)
    np.testing.assert_array_equal(again.looks[0].truth, some[0].looks[0].truth)


def test_a_view_inside_a_large_structure_is_full_of_it_and_its_volume_is_known():
    image = np.random.default_rng(0).normal(size=(80, 80, 80)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[10:70, 10:70, 10:70] = True
    shares = []
    for seed in range(40):
        made = case(np.random.default_rng(seed), Source(image, (1, 1, 1)), mask, 32)
        assert made.volume == 60**3
        assert made.length == 60
        shares += [look.truth.mean() / 255 for look in made.looks if look.prompted]
    assert max(shares) > 0.95
    assert min(shares) < 0.3


def test_turns_go_on_from_answers_until_their_end(some):
    random = np.random.default_rng(0)
    numbers = []
    for made in some:
        turn = opening(random, made)
        while turn is not None:
            inputs = turn.inputs()
            assert inputs.shape == (10, 32, 32, 32)
            assert np.isfinite(inputs).all()
            numbers.append(turn.number)
            turn = following(random, turn, np.zeros((32,) * 3, np.float32))
    assert 1 <= max(numbers) < ROUNDS


def test_after_a_wrong_answer_there_are_more_prompts(some):
    random = np.random.default_rng(1)
    turn = opening(random, some[0])
    grown = []
    for _ in range(20):
        after = following(random, turn, 1 - turn.truth())
        if after is not None:
            grown.append(
                len(after.marks.include)
                + len(after.marks.exclude)
                + len(after.marks.strokes)
                + len(after.marks.erasers)
            )
    before = len(turn.marks.include) + len(turn.marks.exclude) + len(turn.marks.strokes) + len(turn.marks.erasers)
    assert max(grown) == before + 1
