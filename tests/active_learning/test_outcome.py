"""Results of simulated annotators, and the advice that follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rayapp.active_learning.outcome import Round, advice, draw, standings, summary, target_dice


def run(strategy: str, seed: int, *dice: float, minutes: float = 10.0) -> list[Round]:
    """A run tested after 2, 4, 8, … labels, each of them `minutes` of work."""
    return [
        Round(
            strategy=strategy,
            seed=seed,
            labels=2**n,
            minutes=minutes * 2**n,
            version=f"v{n}",
            dice=score,
            training_s=1.0,
        )
        for n, score in enumerate(dice, 1)
    ]


def test_means_and_bands_are_over_seeds():
    def one(seed: int, dice: float) -> Round:
        return Round(strategy="a", seed=seed, labels=2, minutes=10 + seed, version="v1", dice=dice, training_s=1.0)

    (row,) = summary([one(0, 0.5), one(1, 0.7)], "a")
    assert (row.labels, row.seeds, row.minutes) == (2, 2, 10.5)
    assert (row.dice, row.error) == (pytest.approx(0.6), pytest.approx(0.1))


def test_the_picture_of_one_run_has_no_band_and_is_drawn(tmp_path: Path):
    draw(
        [Round(strategy="a", seed=0, labels=n, minutes=n, version="v", dice=n / 9, training_s=1.0) for n in (2, 4)],
        tmp_path / "curves.png",
    )
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1100, 400)


def test_what_is_aimed_at_is_reached_between_two_tests_in_proportion():
    rounds = run("random", 0, 0.4, 0.6, 0.8) + run("tta", 0, 0.7, 0.7, 0.75)
    assert target_dice(rounds) == pytest.approx(0.76)
    first, second = standings(rounds, 0.7)
    assert (first.strategy, first.labels, first.minutes) == ("tta", 2, 20)
    assert (second.strategy, second.labels, second.minutes) == ("random", pytest.approx(6), pytest.approx(60))
    assert [one.labels for one in standings(rounds, 0.9)] == [None, None]


def test_strategies_are_compared_by_the_tests_that_all_of_them_had():
    rounds = run("random", 0, 0.5, 0.6, 0.9) + run("tta", 0, 0.6, 0.7)
    assert [(one.strategy, one.dice) for one in standings(rounds, 0.6)] == [
        ("tta", pytest.approx(0.65)),
        ("random", pytest.approx(0.55)),
    ]


def test_a_strategy_that_is_clearly_ahead_is_advised_with_what_it_saves():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.5 + seed / 1000, 0.6, 0.8)]
    rounds += [one for seed in range(3) for one in run("epistemic", seed, 0.7 + seed / 1000, 0.8, 0.85, minutes=5)]
    told = advice(rounds, 0.8)
    assert told.startswith("Use epistemic: epistemic is ahead of random by a Dice of 0.150 ± ")
    assert told.endswith("0.800 with 4 labels in 20 annotation minutes, random with 8 in 80: 75% of the time saved.")
    assert "random does not reach it" in advice(rounds, 0.82)


def test_what_may_be_chance_is_called_so():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.5 + seed / 10)]
    rounds += [one for seed in range(3) for one in run("tta", seed, 0.52 + seed / 10)]
    assert advice(rounds, 0.6).startswith("Use random: tta is ahead of random by a Dice of 0.020 ± 0.08")


def test_the_best_of_many_must_lead_by_more_than_the_better_of_two():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.50 + seed / 100)]
    lucky = [one for seed in range(3) for one in run("lucky", seed, 0.53 + seed / 100)]
    others = [one for n in range(6) for seed in range(3) for one in run(f"other{n}", seed, 0.4 + seed / 100)]
    assert advice(rounds + lucky, 0.9).startswith("Use lucky: lucky is ahead of random by a Dice of 0.030 ± 0.008")
    assert advice(rounds + lucky + others, 0.9).startswith("Use random: lucky is ahead of random")


def test_a_strategy_must_beat_the_baseline_that_beats_random():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.5 + seed / 100)]
    rounds += [one for seed in range(3) for one in run("foreground_random", seed, 0.7 + seed / 100)]
    lucky = [one for seed in range(3) for one in run("tta", seed, 0.705 + seed / 100)]
    better = [one for seed in range(3) for one in run("tta", seed, 0.8 + seed / 100)]
    assert advice(rounds, 0.9).startswith(
        "Use foreground_random: foreground_random is ahead of random by a Dice of 0.2"
    )
    assert advice(rounds + lucky, 0.9).startswith("Use foreground_random: tta is ahead of foreground_random by a Dice")
    assert advice(rounds + better, 0.9).startswith("Use tta: tta is ahead of foreground_random by a Dice of 0.1")


def test_a_baseline_that_does_not_clearly_beat_random_is_not_advised():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.5 + seed / 100)]
    rounds += [one for seed in range(3) for one in run("foreground_random", seed, 0.505 + seed / 100)]
    lucky = [one for seed in range(3) for one in run("tta", seed, 0.51 + seed / 100)]
    assert advice(rounds + lucky, 0.9).startswith("Use random: tta is ahead of random by a Dice of 0.010")


def test_one_seed_proves_nothing():
    told = advice(run("random", 0, 0.5) + run("tta", 0, 0.9), 0.6)
    assert told.startswith("Use random: tta is ahead of random by a Dice of 0.400, in a single run each: repeat both")


@pytest.mark.parametrize("other", ["tta", "foreground_random"])
def test_where_random_wins_random_is_advised(other: str):
    assert advice(run("random", 0, 0.9) + run(other, 0, 0.5), 0.6) == "Use random: no other strategy was better."


def test_runs_that_came_to_exactly_the_same_are_compared_too():
    rounds = [one for seed in range(3) for one in run("random", seed, 0.5)]
    ahead = [one for seed in range(3) for one in run("tta", seed, 0.6)]
    same = [one for seed in range(3) for one in run("last", seed, 0.5)]
    assert advice(rounds + ahead, 0.6).startswith("Use tta: ")
    assert advice(rounds + same, 0.6).startswith("Use random: ")


def test_a_strategy_alone_says_nothing_of_what_it_saves():
    assert "in comparison with others" in advice(run("tta", 0, 0.5), 0.6)
    assert "in comparison with others" in advice(run("tta", 0, 0.5) + run("epistemic", 0, 0.6), 0.6)
