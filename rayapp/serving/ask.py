"""Ask: the ways to ask a model for its answers to prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rayapp.inference.infer_task import Prediction, Prompts, StagedTask
from rayapp.serving.work import Work

Ask = Callable[[Work, Any, Prompts], Iterator[Prediction]]
"""Runs a task on a prepared image: one prediction, or several that get better."""


def best(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """One prediction."""
    yield work.task.predict(prepared, prompts, work.call.params)


def stages(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """All stages."""
    if isinstance(work.task, StagedTask):
        return work.task.stages(prepared, prompts, work.call.params)
    return best(work, prepared, prompts)


def last(work: Work, prepared: Any, prompts: Prompts) -> Iterator[Prediction]:
    """The last stage; it does not depend on whether anybody looked at the stages before it."""
    *_, found = stages(work, prepared, prompts)
    yield found
