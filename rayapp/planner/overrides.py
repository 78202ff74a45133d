"""Overrides: choices that a person makes instead of the planner, in a request, with `--conf` or in an app. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest

Numbers = npt.NDArray[np.float64]

MAX_AXIS = 384
"""Maximum number of voxels of a region along an axis."""
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """The choices already made; None for those left to the planner."""

    spacing: Numbers | None = None
    roi_size: Numbers | None = None
    network: Mapping[str, Any] | None = None
    train_batch_size: int | None = None
    precision: str | None = None
    overlap: float | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, axes: int) -> Self:
        """Parse overrides given as text (from `--conf`) or JSON values.

        Unknown keys are ignored. None, an empty value and a `train_batch_size` of 0 leave the choice to the planner.

        Args:
            fields: `spacing` is one number in mm or one per axis; `roi_size` one number of voxels per axis, along R, A,
                S; `network` a description as taken by `rayapp.models.networks.build`, without channels.
            axes: number of axes of the network.

        Raises:
            BadRequest: naming the key.
        """
        chosen = {key: fields[key] for key in FIELDS if fields.get(key) is not None and str(fields[key]) not in EMPTY}
        spacing = _numbers(chosen, "spacing", (1, axes), lambda mm: 0.01 <= mm <= 100)
        roi_size = _numbers(chosen, "roi_size", (axes,), lambda n: n.is_integer() and 1 <= n <= MAX_AXIS)
        batch = _numbers(chosen, "train_batch_size", (1,), lambda n: n.is_integer() and 0 <= n <= 1024)
        overlap = _numbers(chosen, "overlap", (1,), lambda share: 0 <= share < 1)
        precision = chosen.get("precision")
        if precision is not None and precision not in PRECISIONS:
            raise BadRequest(f"precision must be one of {', '.join(PRECISIONS)}, not {str(precision)[:40]!r}")
        return cls(
            spacing=None if spacing is None else np.array(np.broadcast_to(spacing, axes)),
            roi_size=roi_size,
            network=_network(chosen.get("network"), axes),
            train_batch_size=int(batch[0]) or None if batch is not None else None,
            precision=precision,
            overlap=None if overlap is None else float(overlap[0]),
        )


FIELDS = tuple(Overrides.__dataclass_fields__)
EMPTY = ("", "[]", "{}", "()")


def _numbers(
    fields: Mapping[str, Any], key: str, counts: tuple[int, ...], valid: Callable[[float], bool]
) -> Numbers | None:
    """The numbers under a key: one, a list, or either as text."""
    if key not in fields:
        return None
    value = fields[key]
    try:
        parts = value.strip("[]() ").split(",") if isinstance(value, str) else np.atleast_1d(value).tolist()
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(valid(number) for number in numbers):
        raise BadRequest(f"{key}: {str(value)[:40]!r} is out of range or not a number")
    if len(numbers) not in counts:
        expected = " or ".join(str(count) for count in sorted(set(counts)))
        raise BadRequest(f"{key} needs {expected} number(s), for the axes R, A, S, not {len(numbers)}")
    return np.array(numbers)


def _network(value: Any, axes: int) -> Mapping[str, Any] | None:
    if value is None:
        return None
    try:
        network = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        network = None
    if not isinstance(network, Mapping):
        raise BadRequest(f"network must be an object with name and arguments, not {str(value)[:40]!r}")
    if network.get("spatial_dims", axes) != axes:
        raise BadRequest(f"network: spatial_dims must be {axes}, not {str(network['spatial_dims'])[:40]}")
    return {"spatial_dims": axes, **network}
