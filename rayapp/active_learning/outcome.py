"""Outcome of simulated runs: the Dice score by labels and by minutes for each strategy, and which strategy to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet

ROUNDS = "rounds"
BASELINES = ("random", "foreground_random")
"""Strategies that others are compared with. Each must beat those before it to become the baseline."""
TARGET_SHARE = 0.95
"""The Dice score to reach, as a share of the best one of all strategies."""
SIGNIFICANCE = 0.05
"""Significance level at which a strategy counts as better than the baseline."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The model after one training.

    Attributes:
        strategy: Name of the strategy.
        seed: Seed of the run.
        labels: Number of labelled images.
        minutes: Annotation time of all annotators together so far, in minutes.
        version: The model's version.
        dice: Mean Dice score on the validation images.
        training_s: Duration of the training, in seconds.
    """

    strategy: str
    seed: int
    labels: int
    minutes: float
    version: str
    dice: float
    training_s: float


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean over seeds of a strategy's rounds with the same number of labels.

    Attributes:
        labels: Number of labels.
        minutes: Mean annotation time in minutes.
        dice: Mean Dice score.
        error: Standard error of the mean Dice score; NaN for a single seed.
        seeds: Number of seeds.
    """

    labels: int
    minutes: float
    dice: float
    error: float
    seeds: int

    def __str__(self) -> str:
        return format_dice(self.dice, self.error)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A strategy in comparison with others.

    Attributes:
        strategy: Name of the strategy.
        dice: Mean Dice score over the numbers of labels that all strategies were tested with.
        error: Standard error of `dice` over seeds; NaN for a single seed.
        seeds: Number of seeds.
        labels: Number of labels at which the target Dice score is reached, interpolated between rounds; None if it is
            not reached.
        minutes: Annotation time in minutes at which the target is reached; None if it is not reached.
    """

    strategy: str
    dice: float
    error: float
    seeds: int
    labels: float | None
    minutes: float | None

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return self.error * math.sqrt(self.seeds)

    def __str__(self) -> str:
        return format_dice(self.dice, self.error)


def format_dice(dice: float, error: float) -> str:
    """A Dice score with its standard error, if there is one."""
    return f"{dice:.3f}" if math.isnan(error) else f"{dice:.3f} ± {error:.3f}"


def read_rounds(folder: Path) -> list[Round]:
    """The rounds of all runs with results in a folder."""
    files = sorted(folder.glob(f"*.{ROUNDS}.parquet"))
    return [Round(**row) for file in files for row in parquet.read_table(file).to_pylist()]


def summary(rounds: Sequence[Round], strategy: str) -> list[Mean]:
    """A strategy's means over seeds, by number of labels in ascending order."""
    means = []
    for labels in sorted({one.labels for one in rounds if one.strategy == strategy}):
        same = [one for one in rounds if one.strategy == strategy and one.labels == labels]
        dice, error = _mean([one.dice for one in same])
        minutes = float(np.mean([one.minutes for one in same]))
        means.append(Mean(labels=labels, minutes=minutes, dice=dice, error=error, seeds=len(same)))
    return means


def target_dice(rounds: Sequence[Round]) -> float:
    """The Dice score to reach: a share of the best mean of any strategy."""
    return TARGET_SHARE * max(mean.dice for strategy in strategies_in(rounds) for mean in summary(rounds, strategy))


def standings(rounds: Sequence[Round], target: float) -> list[Standing]:
    """The standings of all strategies, best first.

    Args:
        rounds: The rounds of all runs.
        target: The Dice score to reach.
    """
    names = strategies_in(rounds)
    common = set.intersection(*({one.labels for one in rounds if one.strategy == name} for name in names))
    all_standings = []
    for name in names:
        runs: dict[int, dict[int, float]] = {}
        for one in rounds:
            if one.strategy == name and one.labels in common:
                runs.setdefault(one.seed, {})[one.labels] = one.dice
        means = [float(np.mean(list(run.values()))) for run in runs.values() if len(run) == len(common)]
        dice, error = _mean(means)
        labels, minutes = _cost(summary(rounds, name), target)
        standing = Standing(strategy=name, dice=dice, error=error, seeds=len(means), labels=labels, minutes=minutes)
        all_standings.append(standing)
    return sorted(all_standings, key=lambda standing: -standing.dice)


def advice(rounds: Sequence[Round], target: float) -> str:
    """The strategy to use and what it saves, or why the runs cannot tell, in a sentence or two.

    Args:
        rounds: The rounds of all runs.
        target: The Dice score to reach.
    """
    ranked = standings(rounds, target)
    baselines = [one for name in BASELINES for one in ranked if one.strategy == name]
    if not baselines or len(ranked) == 1:
        return "A strategy's value shows in comparison with others: run `random` and others into the same folder."
    chosen, reason = baselines[0], "no other strategy was better."
    for candidate in (*baselines[1:], ranked[0]):
        if candidate.dice <= chosen.dice:
            continue
        gain, error = candidate.dice - chosen.dice, math.hypot(candidate.error, chosen.error)
        lead = f"{candidate.strategy} is ahead of {chosen.strategy} by a Dice of {format_dice(gain, error)}"
        if math.isnan(error):
            reason = f"{lead}, in a single run each: repeat both with other seeds before you rely on it."
        elif _p_value(candidate, chosen, strategies=len(ranked) - 1) > SIGNIFICANCE:
            reason = f"{lead}, which may be chance."
        else:
            chosen, reason = candidate, f"{lead}.{_savings(candidate, chosen, target)}"
    return f"Use {chosen.strategy}: {reason}"


def _p_value(best: Standing, baseline: Standing, strategies: int) -> float:
    """Probability of such a lead over the baseline if no strategy were better.

    Welch's t-test, as few seeds leave the variances uncertain, with Bonferroni's correction for the number of
    strategies that the best was picked from.
    """
    from scipy.stats import ttest_ind_from_stats

    test = ttest_ind_from_stats(
        *(best.dice, best.spread, best.seeds),
        *(baseline.dice, baseline.spread, baseline.seeds),
        equal_var=False,
        alternative="greater",
    )
    return float(test.pvalue) * strategies


def _savings(best: Standing, baseline: Standing, target: float) -> str:
    if best.minutes is None or best.labels is None:
        return ""
    reached = f" It reaches {target:.3f} with {best.labels:.0f} labels in {best.minutes:.0f} annotation minutes"
    if baseline.minutes is None or baseline.labels is None:
        return f"{reached}; {baseline.strategy} does not reach it."
    saved = 1 - best.minutes / baseline.minutes
    return (
        f"{reached}, {baseline.strategy} with {baseline.labels:.0f} in {baseline.minutes:.0f}: "
        f"{abs(saved):.0%} of the time {'saved' if saved >= 0 else 'lost'}."
    )


def _cost(means: Sequence[Mean], target: float) -> tuple[float | None, float | None]:
    """Labels and minutes at which the mean Dice score first reaches the target, interpolated between rounds."""
    for before, now in zip([None, *means], means, strict=False):
        if now.dice < target:
            continue
        if before is None:
            return now.labels, now.minutes
        share = (target - before.dice) / (now.dice - before.dice)
        return (
            before.labels + share * (now.labels - before.labels),
            before.minutes + share * (now.minutes - before.minutes),
        )
    return None, None


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is NaN."""
    if not values:
        return float("nan"), float("nan")
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return float(np.mean(values)), error


def strategies_in(rounds: Sequence[Round]) -> list[str]:
    """The strategies that were run, in the order of the rounds."""
    return list(dict.fromkeys(one.strategy for one in rounds))


def draw(rounds: Sequence[Round], picture: Path) -> None:
    """Draw the validation Dice score by labels and by minutes as PNG, with one line per strategy and a band of one
    standard error over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(sheet)
    by_labels, by_minutes = sheet.subplots(1, 2, sharey=True)
    for strategy in strategies_in(rounds):
        rows = summary(rounds, strategy)
        mean, error = np.array([row.dice for row in rows]), np.array([row.error for row in rows])
        for axes, x in (
            (by_labels, [row.labels for row in rows]),
            (by_minutes, [row.minutes for row in rows]),
        ):
            (line,) = axes.plot(x, mean, marker=".", label=strategy)
            axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    by_labels.set(xlabel="labels", ylabel="validation Dice")
    by_minutes.set(xlabel="annotation minutes")
    by_labels.legend()
    sheet.savefig(picture, format="png", dpi=100)
