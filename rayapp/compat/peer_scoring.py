"""MONAI Label's scoring methods that rayapp has itself."""

from __future__ import annotations

from typing import Any

from rayapp.active_learning.scoring_methods import DiceScore
from rayapp.active_learning.scoring_methods import Sum as SumScore


class Dice(DiceScore):
    """rayapp's Dice score, under the name that apps import."""


class Sum(SumScore):
    """rayapp's sizes of labels, under the name that apps import."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        """Accept the tags that apps give; the labels `final` and `original` are measured."""
