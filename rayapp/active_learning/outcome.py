"""Outcome: what simulated runs came to: Dice by labels and by minutes for each strategy, and which of them to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet

ROUNDS = "rounds"
BASELINES = ("random", "foreground_random")
"""What a strategy must beat to be worth its scoring, and each of them those before it: the first needs none."""
ENOUGH = 0.95
"""The share of the best Dice with which a model is as good as done."""
CHANCE = 0.05
"""How likely chance alone may make the best of all strategies lead as it does, for it to be called better."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The model after a training: `minutes` is what all annotators together have spent by then."""

    strategy: str
    seed: int
    labels: int
    minutes: float
    version: str
    dice: float
    training_s: float


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A strategy's rounds of so many labels, over seeds; `error` is the standard deviation of the mean, NaN for one."""

    labels: int
    minutes: float
    dice: float
    error: float
    seeds: int

    def __str__(self) -> str:
        return told(self.dice, self.error)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A strategy among others. `dice` is the mean over the numbers of labels that all of them were tested with, `error`
    its standard deviation over the `seeds`, NaN for a single one; `labels` and `minutes` are those with which the Dice
    aimed at is reached, between two tests in proportion, None where it is not."""

    strategy: str
    dice: float
    error: float
    seeds: int
    labels: float | None
    minutes: float | None

    @property
    def spread(self) -> float:
        """Standard deviation of the seeds themselves."""
        return self.error * math.sqrt(self.seeds)

    def __str__(self) -> str:
        return told(self.dice, self.error)


def told(dice: float, error: float) -> str:
    """A Dice as people read it; without an error where a single run tells of none."""
    return f"{dice:.3f}" if math.isnan(error) else f"{dice:.3f} ± {error:.3f}"


def rounds_in(folder: Path) -> list[Round]:
    """Those of all runs whose results are in the folder."""
    files = sorted(folder.glob(f"*.{ROUNDS}.parquet"))
    return [Round(**row) for file in files for row in parquet.read_table(file).to_pylist()]


def summary(rounds: Sequence[Round], strategy: str) -> list[Mean]:
    """A strategy's means by number of labels."""
    means = []
    for labels in sorted({one.labels for one in rounds if one.strategy == strategy}):
        same = [one for one in rounds if one.strategy == strategy and one.labels == labels]
        dice, error = _mean([one.dice for one in same])
        minutes = float(np.mean([one.minutes for one in same]))
        means.append(Mean(labels=labels, minutes=minutes, dice=dice, error=error, seeds=len(same)))
    return means


def aim(rounds: Sequence[Round]) -> float:
    """The Dice to reach, from the best that any strategy came to."""
    return ENOUGH * max(mean.dice for strategy in strategies_in(rounds) for mean in summary(rounds, strategy))


def standings(rounds: Sequence[Round], aimed: float) -> list[Standing]:
    """Every strategy's, the best first."""
    names = strategies_in(rounds)
    common = set.intersection(*({one.labels for one in rounds if one.strategy == name} for name in names))
    found = []
    for name in names:
        runs: dict[int, dict[int, float]] = {}
        for one in rounds:
            if one.strategy == name and one.labels in common:
                runs.setdefault(one.seed, {})[one.labels] = one.dice
        means = [float(np.mean(list(run.values()))) for run in runs.values() if len(run) == len(common)]
        dice, error = _mean(means)
        labels, minutes = _reached(summary(rounds, name), aimed)
        found.append(Standing(strategy=name, dice=dice, error=error, seeds=len(means), labels=labels, minutes=minutes))
    return sorted(found, key=lambda one: -one.dice)


def advice(rounds: Sequence[Round], aimed: float) -> str:
    """Which strategy to use and what it saves, or why that cannot be said: a sentence or two."""
    ranked = standings(rounds, aimed)
    baselines = [one for name in BASELINES for one in ranked if one.strategy == name]
    if not baselines or len(ranked) == 1:
        return "What a strategy saves shows beside another: run `random` and others into the same folder."
    chosen, because = baselines[0], "no other strategy was better."
    for one in (*baselines[1:], ranked[0]):
        if one.dice <= chosen.dice:
            continue
        gain, error = one.dice - chosen.dice, math.hypot(one.error, chosen.error)
        ahead = f"{one.strategy} is ahead of {chosen.strategy} by a Dice of {told(gain, error)}"
        if math.isnan(error):
            because = f"{ahead}, in a single run each: repeat both with other seeds before you rely on it."
        elif _by_chance(one, chosen, among=len(ranked) - 1) > CHANCE:
            because = f"{ahead}, which may be chance."
        else:
            chosen, because = one, f"{ahead}.{_saved(one, chosen, aimed)}"
    return f"Use {chosen.strategy}: {because}"


def _by_chance(best: Standing, baseline: Standing, among: int) -> float:
    """How likely one of so many strategies would be as far ahead if none were better: Welch's t-test, since few seeds
    say little about their spread, times the number of strategies the best was picked from (Bonferroni)."""
    from scipy.stats import ttest_ind_from_stats

    test = ttest_ind_from_stats(
        *(best.dice, best.spread, best.seeds),
        *(baseline.dice, baseline.spread, baseline.seeds),
        equal_var=False,
        alternative="greater",
    )
    return float(test.pvalue) * among


def _saved(best: Standing, baseline: Standing, aimed: float) -> str:
    if best.minutes is None or best.labels is None:
        return ""
    reached = f" It reaches {aimed:.3f} with {best.labels:.0f} labels in {best.minutes:.0f} annotation minutes"
    if baseline.minutes is None or baseline.labels is None:
        return f"{reached}; {baseline.strategy} does not reach it."
    saved = 1 - best.minutes / baseline.minutes
    return (
        f"{reached}, {baseline.strategy} with {baseline.labels:.0f} in {baseline.minutes:.0f}: "
        f"{abs(saved):.0%} of the time {'saved' if saved >= 0 else 'lost'}."
    )


def _reached(means: Sequence[Mean], aimed: float) -> tuple[float | None, float | None]:
    """Labels and minutes with which the mean Dice first is what is aimed at."""
    for before, now in zip([None, *means], means, strict=False):
        if now.dice < aimed:
            continue
        if before is None:
            return now.labels, now.minutes
        share = (aimed - before.dice) / (now.dice - before.dice)
        return (
            before.labels + share * (now.labels - before.labels),
            before.minutes + share * (now.minutes - before.minutes),
        )
    return None, None


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard deviation, NaN for a single value."""
    if not values:
        return float("nan"), float("nan")
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return float(np.mean(values)), spread


def strategies_in(rounds: Sequence[Round]) -> list[str]:
    """Those that were run, in the order of their files."""
    return list(dict.fromkeys(one.strategy for one in rounds))


def draw(rounds: Sequence[Round], picture: Path) -> None:
    """Validation Dice by labels and by minutes, one line a strategy, with a band of one standard deviation of the mean
    over seeds, as PNG."""
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
