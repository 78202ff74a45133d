"""Options: what a request may set about a run, parsed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rayapp.errors import BadRequest
from rayapp.protocol import parse_flag

CACHE = 1024
"""MiB of decoded images, where neither options nor plan say."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The defaults are what `/info/` lists; the names are those of MONAI Label where it has them.

    `early_stop_patience` is in validations without a better metric (negative: never stop early); `learning_rate` the
    schedule's peak; `train_batch_size` 0 leaves it to the planner; `accumulate` how many batches make one step;
    `checkpoint_every` counts steps; `cache` is how many MiB of decoded images a worker keeps (negative: as many as the
    planner says); `pretrained` starts from the version that the run names as its parent.
    """

    max_epochs: int = 50
    early_stop_patience: int = -1
    val_split: float = 0.2
    val_interval: int = 1
    train_batch_size: int = 0
    accumulate: int = 1
    learning_rate: float = 2e-3
    checkpoint_every: int = 200
    pretrained: bool = True
    augment: bool = True
    amp: bool = True
    cache: int = -1
    seed: int = 0

    def over(self, params: Mapping[str, Any]) -> Self:
        """These options with a request's values in place of their own; keys that are no options are ignored.

        Raises BadRequest naming the option.
        """
        given: dict[str, Any] = {
            field.name: _parsed(field.name, getattr(self, field.name), params[field.name])
            for field in dataclasses.fields(self)
            if params.get(field.name) is not None
        }
        options = dataclasses.replace(self, **given)
        if options.train_batch_size < 0:
            raise BadRequest(f"train_batch_size must be at least 0, not {options.train_batch_size}")
        for name in ("max_epochs", "val_interval", "accumulate", "checkpoint_every"):
            if getattr(options, name) < 1:
                raise BadRequest(f"{name} must be at least 1, not {getattr(options, name)}")
        if not 0 < options.val_split < 1:
            raise BadRequest(f"val_split must lie between 0 and 1, not {options.val_split}")
        if not 0 < options.learning_rate < 1:
            raise BadRequest(f"learning_rate must lie between 0 and 1, not {options.learning_rate}")
        if not 0 <= options.seed < 2**31:
            raise BadRequest("seed must lie from 0 to below 2 to the 31st")
        return options

    def planned(self, plan: Mapping[str, Any]) -> Self:
        """These options with a design's plan where they leave something to it."""
        return dataclasses.replace(
            self,
            train_batch_size=self.train_batch_size or int(plan.get("train_batch_size", 1)),
            cache=self.cache if self.cache >= 0 else int(plan.get("cache", CACHE)),
        )

    def config(self) -> dict[str, Any]:
        """As `/info/` and cards show them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClickOptions(Options):
    """Options of tasks that learn from simulated clicks.

    `rounds` is how often, at most, one step's clicks are answered and corrected; `click_noise` the standard deviation,
    in the network's voxels, by which a click misses its place; `val_clicks` the clicks a validation case gets.
    """

    rounds: int = 6
    click_noise: float = 0.0
    val_clicks: int = 5

    def over(self, params: Mapping[str, Any]) -> Self:
        """As of `Options`."""
        options = super().over(params)
        if options.rounds < 1 or options.val_clicks < 1 or not 0 <= options.click_noise < 100:
            raise BadRequest("rounds and val_clicks must be at least 1, click_noise from 0 to 100")
        return options


def _parsed(name: str, default: object, value: object) -> object:
    """A value of the default's type; clients may send text, or a list whose first item is meant."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else default
    if isinstance(default, bool):
        return parse_flag(value, name)
    try:
        number = float(str(value))
        if isinstance(default, int):
            if not number.is_integer():
                raise ValueError
            return int(number)
    except (ValueError, OverflowError):
        raise BadRequest(f"{name} cannot be {str(value)[:40]!r}") from None
    return number
