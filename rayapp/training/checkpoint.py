"""Checkpoint: everything a run needs to go on as if it had never stopped.

A folder with `tensors.pt` (network, optimiser, scheduler and the best weights so far; read with `weights_only`, which
loads tensors and plain values and runs no code) and `state.json`, written last. No generator's state is kept: all
randomness follows from the seed and the step (see `feed` and `loop`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rayapp.errors import Unreadable

STATE, TENSORS = "state.json", "tensors.pt"


@dataclass(kw_only=True)
class State:
    """How far a run is. Changes as it goes; belongs to the loop.

    `epoch` counts those completed, `consumed` the cases of the next that were trained with, by all workers; `rows` are
    the validated epochs' figures, as `rayapp.training.run_report` shows them; `seconds` is the time spent training,
    `kept` the iteration of the last checkpoint and `resumed` how often the run went on from one; `design` is
    a card's part.
    """

    epoch: int = 0
    consumed: int = 0
    iteration: int = 0
    iterations: int = 0
    best: float | None = None
    best_epoch: int = 0
    validations_since: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.time)
    kept: int = 0
    resumed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    design: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, state: State, tensors: Mapping[str, Any]) -> None:
    """Write a checkpoint into an empty or missing `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.save(dict(tensors), folder / TENSORS)
    (folder / STATE).write_text(json.dumps(dataclasses.asdict(state)))


def load(folder: Path) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint, tensors on the CPU. Raises Unreadable if it is not whole."""
    try:
        state = State(**json.loads((folder / STATE).read_text()))
        tensors = torch.load(folder / TENSORS, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise Unreadable(f"the checkpoint is not whole: {type(error).__name__}") from error
    return state, dict(tensors)
