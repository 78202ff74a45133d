"""Seams: whether what an app brings answers to the protocols that the server asks. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayapp import fault
from rayapp.errors import RayappError
from rayapp.inference.task import TaskInfo
from rayapp.protocol import checked_name
from rayapp.training.task import TrainerInfo

INFER = ("info", "version", "load()", "prepare(volume)", "predict(prepared, prompts, config)")
TRAIN = ("info", "train(request, host)")
CHOOSE = ("description", "__call__(request, datastore)")
SCORE = ("description", "config", "images", "asks_model", "score(case, options, task)")
_INFOS = {INFER: TaskInfo, TRAIN: TrainerInfo}


def complaint(name: Any, thing: Any, members: tuple[str, ...], folder: Path) -> str | None:
    """What keeps `thing` from being served under `name`, in words for who wrote it; None if nothing does.

    `members` is one of the tuples above; names with parentheses are methods.
    """
    try:
        checked_name(name if isinstance(name, str) else repr(name), "name")
        where = fault.definition(type(thing), folder)
        for member in members:
            bare = member.partition("(")[0]
            found = getattr(thing, bare, None)
            if found is None or ("(" in member and not callable(found)):
                return f"{where} needs {'a method' if '(' in member else 'an attribute or property'} {member}"
        wanted = _INFOS.get(members)
        return None if wanted is None else _of_info(thing.info, wanted, where)
    except RayappError as error:
        return error.detail
    except Exception as error:
        return fault.told(error, folder)


def _of_info(info: Any, wanted: Any, where: str) -> str | None:
    if not isinstance(info, wanted):
        return f"{where}: its info must be a {wanted.__name__}, not {_kind(info)}"
    labels = info.labels
    if not isinstance(labels, Mapping) or not all(
        isinstance(key, str) and isinstance(value, int) and 0 <= value <= 255 for key, value in labels.items()
    ):
        return f'{where}: the labels of its info must be a dict such as {{"liver": 1, "spleen": 2}}, not {labels!r:.80}'
    try:
        json.dumps(dict(info.config))
    except (TypeError, ValueError) as error:
        return f"{where}: the config of its info must be plain JSON ({error})"
    return None


def expected(hook: Any, made: Any, what: str, folder: Path) -> str:
    """The complaint about a hook that returned something else than a dict."""
    return f"{fault.definition(hook, folder)} must return a dict of {what} by name, not {_kind(made)}"


def _kind(thing: Any) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
