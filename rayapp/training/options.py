"""Options that a request may set for a run, parsed and checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rayapp.errors import BadRequest
from rayapp.protocol import parse_flag

MONTH = 43_200
"""Minutes in a month."""
STEPS = {"cpu": 2_000, "cuda": 20_000}
"""Steps of a training if no length is given, by device."""
CACHE = 1024
"""Default size of a worker's cache of decoded images, in MiB, when neither options nor plan set it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a training run, named as in MONAI Label where it has them. `/info/` lists the defaults.

    Attributes:
        max_epochs: Epochs to train, each with one visit to every image, unless `minutes` or `max_steps` say how long; 0
            sets no such limit.
        max_steps: Steps of the optimiser to train; 0 sets no such limit.
        minutes: Minutes to train, validation included, over all starts of the run; 0 sets no such limit. Where all
            three are 0, the run takes as many steps as suit the device (`STEPS`).
        early_stop_patience: Validations without improvement after which training stops; negative never stops early.
        val_split: Share of the images that is held out for validation.
        val_interval: Epochs from one validation to the next; with `minutes` or `max_steps`, a twentieth of the run.
        train_batch_size: Images per batch and worker; 0 leaves it to the planner.
        accumulate: Batches whose gradients are accumulated in one step.
        learning_rate: Peak of the learning rate schedule.
        checkpoint_every: Steps from one checkpoint to the next.
        pretrained: Start from the weights of the run's parent version.
        augment: Augment training images at random.
        amp: Compute in bfloat16 where the device benefits from it.
        cache: MiB of decoded images that a worker keeps in memory; negative leaves it to the planner.
        seed: Seed of all randomness.
        skip_bad: Leave out images that cannot be trained with, rather than refuse the training.
    """

    max_epochs: int = 50
    max_steps: int = 0
    minutes: float = 0.0
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
    skip_bad: bool = False

    def over(self, params: Mapping[str, Any]) -> Self:
        """A copy with the values of a request, or of an app's `conf`. Keys that are not options are ignored.

        Raises:
            BadRequest: Naming the option whose value is not allowed.
        """
        options = dataclasses.replace(self, **given(self, params))
        if options.train_batch_size < 0:
            raise BadRequest(f"train_batch_size must be at least 0, not {options.train_batch_size}")
        if options.max_epochs < 0 or options.max_steps < 0 or not 0 <= options.minutes < MONTH:
            raise BadRequest(
                f"max_epochs and max_steps must be at least 0 and minutes lie between 0 and {MONTH}, not "
                f"{options.max_epochs}, {options.max_steps} and {options.minutes:g}"
            )
        for name in ("val_interval", "accumulate", "checkpoint_every"):
            if getattr(options, name) < 1:
                raise BadRequest(f"{name} must be at least 1, not {getattr(options, name)}")
        if not 0 < options.val_split < 1:
            raise BadRequest(f"val_split must lie between 0 and 1, not {options.val_split}")
        if not 0 < options.learning_rate < 1:
            raise BadRequest(f"learning_rate must lie between 0 and 1, not {options.learning_rate}")
        if not 0 <= options.seed < 2**31:
            raise BadRequest(f"seed must lie between 0 and {2**31 - 1}, not {options.seed}")
        return options

    def bounded(self, device: str) -> Self:
        """A copy with a definite length: `STEPS` of the device, unless epochs, steps or minutes are set."""
        if self.max_epochs or self.max_steps or self.minutes:
            return self
        return dataclasses.replace(self, max_steps=STEPS.get(device, STEPS["cpu"]))

    def planned(self, plan: Mapping[str, Any]) -> Self:
        """A copy in which the values left to the planner are those of a design's `plan`."""
        return dataclasses.replace(
            self,
            train_batch_size=self.train_batch_size or int(plan.get("train_batch_size", 1)),
            cache=self.cache if self.cache >= 0 else int(plan.get("cache", CACHE)),
        )

    def config(self) -> dict[str, Any]:
        """The options by name, as `/info/` and version cards show them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClickOptions(Options):
    """Options of trainers that learn from simulated clicks, in addition to those of `Options`.

    Attributes:
        rounds: Largest number of rounds of prediction and corrective clicks within one step.
        click_noise: Standard deviation of a click's position, in voxels of the network's grid.
        val_clicks: Number of clicks on each validation case.
    """

    rounds: int = 6
    click_noise: float = 0.0
    val_clicks: int = 5

    def over(self, params: Mapping[str, Any]) -> Self:
        """See `Options.over`."""
        options = super().over(params)
        if options.rounds < 1 or options.val_clicks < 1 or not 0 <= options.click_noise < 100:
            raise BadRequest(
                f"rounds and val_clicks must be at least 1 and click_noise at least 0 and below 100, not "
                f"{options.rounds}, {options.val_clicks} and {options.click_noise}"
            )
        return options


@dataclass(frozen=True, kw_only=True)
class PromptableOptions:
    """Options of the trainer of the promptable network.

    Attributes:
        max_epochs: Epochs to train, each of `promptable_train.STEPS` steps.
        val_split: Share of the images that is held out for validation.
        learning_rate: Peak of the learning rate schedule.
        scenes: Share of random scenes among the training cases, so that other structures are not forgotten.
        pretrained: Start from the version in production, or from the weights that ship. Otherwise the DeepGrow network
            of the paper is trained on the labels alone.
        seed: Seed of all randomness.
    """

    max_epochs: int = 8
    val_split: float = 0.2
    learning_rate: float = 5e-4
    scenes: float = 0.3
    pretrained: bool = True
    seed: int = 0

    def over(self, params: Mapping[str, Any]) -> Self:
        """A copy with a request's values; keys that are not options are ignored.

        Raises:
            BadRequest: Naming the option whose value is not allowed.
        """
        options = dataclasses.replace(self, **given(self, params))
        if options.max_epochs < 1 or not 0 < options.val_split < 1:
            raise BadRequest(
                f"max_epochs must be at least 1 and val_split lie between 0 and 1, not {options.max_epochs} and "
                f"{options.val_split}"
            )
        if not 0 < options.learning_rate < 1 or not 0 <= options.scenes <= 1 or not 0 <= options.seed < 2**31:
            raise BadRequest(
                f"learning_rate and scenes must lie between 0 and 1 and seed between 0 and {2**31 - 1}, not "
                f"{options.learning_rate}, {options.scenes} and {options.seed}"
            )
        return options


def given(options: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an options dataclass that a request sets, converted to the types of their present values.

    Raises:
        BadRequest: Naming the option whose value has another type.
    """
    return {
        field.name: _parsed(field.name, getattr(options, field.name), params[field.name])
        for field in dataclasses.fields(options)
        if params.get(field.name) is not None
    }


def _parsed(name: str, default: object, value: object) -> object:
    """The value converted to the default's type. Clients may send text, or a list of choices whose first item is
    selected.
    """
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
