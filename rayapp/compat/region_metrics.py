"""Dice scores of MONAI's engines, in the mean and of each structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.handlers import MeanDice, from_engine


def region_wise_metrics(
    regions: Mapping[str, int], metric: str, prefix: str, keys: Sequence[str] = ("pred", "label")
) -> dict[str, Any]:
    """The mean Dice score, and that of each structure.

    Args:
        regions: Channel by structure name; background is left out.
        metric: Name of the mean.
        prefix: Before the names of the others.
        keys: Keys of output and label, one channel for each class.
    """
    metrics: dict[str, Any] = {metric: mean_dice(keys)}
    for name, channel in regions.items():
        if name != "background":
            metrics[f"{prefix}_{name}_dice"] = MeanDice(output_transform=_one_channel(keys, channel))
    return metrics


def _one_channel(keys: Sequence[str], channel: int) -> Any:
    def chosen(outputs: Any) -> tuple[list[torch.Tensor], ...]:
        return tuple([output[key][channel : channel + 1] for output in outputs] for key in keys)

    return chosen


def mean_dice(keys: Sequence[str] = ("pred", "label")) -> MeanDice:
    return MeanDice(output_transform=from_engine(list(keys)), include_background=False)
