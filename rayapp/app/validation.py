"""Seams: whether what an app brings answers to the protocols that the server asks. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.app import app_traceback
from rayapp.datastore.interfaces import Datastore
from rayapp.datastore.job_record import Ledger
from rayapp.errors import AppBroken, RayappError
from rayapp.inference.infer_task import InferTask, Prediction, TaskInfo
from rayapp.protocol import checked_name
from rayapp.training.train_task import TrainerInfo

INFER = ("info", "version", "load()", "prepare(volume)", "predict(prepared, prompts, config)")
TRAIN = ("info", "train(request, host)")
CHOOSE = ("description", "__call__(request, datastore)")
SCORE = ("description", "config", "images", "needs_model", "score(case, options, task)")
STORE = tuple(
    sorted({name for seam in (Datastore, Ledger) for name in dir(seam) if not name.startswith("_")} | {"close"})
)
"""The methods of a datastore."""
_INFOS = {INFER: TaskInfo, TRAIN: TrainerInfo}


def complaint(name: Any, thing: Any, members: tuple[str, ...], folder: Path) -> str | None:
    """What keeps `thing` from being served under `name`, in words for who wrote it; None if nothing does.

    `members` is one of the tuples above; names with parentheses are methods.
    """
    try:
        checked_name(name if isinstance(name, str) else repr(name), "name")
        lack = _lack(thing, members)
        return None if lack is None else f"{app_traceback.definition(type(thing), folder)}{lack}"
    except RayappError as error:
        return error.detail
    except Exception as error:
        return app_traceback.told(error, folder)


def _lack(thing: Any, members: tuple[str, ...]) -> str | None:
    for member in members:
        bare = member.partition("(")[0]
        found = getattr(thing, bare, None)
        if found is None or ("(" in member and not callable(found)):
            return f" needs {'a method' if '(' in member else 'an attribute or property'} {member}"
    wanted = _INFOS.get(members)
    return None if wanted is None else _lack_of_info(thing.info, wanted)


def _lack_of_info(info: Any, wanted: Any) -> str | None:
    if not isinstance(info, wanted):
        return f": its info must be a {wanted.__name__}, not {_kind(info)}"
    labels = info.labels
    if not isinstance(labels, Mapping) or not all(
        isinstance(key, str) and isinstance(value, int) and 0 <= value <= 255 for key, value in labels.items()
    ):
        return f': the labels of its info must be a dict such as {{"liver": 1, "spleen": 2}}, not {labels!r:.80}'
    try:
        json.dumps(dict(info.config))
    except (TypeError, ValueError) as error:
        return f": the config of its info must be plain JSON ({error})"
    return None


def store_complaint(hook: Any, made: Any, folder: Path) -> str | None:
    """What keeps that which a hook made from being the datastore; None if nothing does."""
    absent = [name for name in STORE if not callable(getattr(made, name, None))]
    if not absent:
        return None
    said = f"{app_traceback.definition(hook, folder)} must return a datastore, not {_kind(made)}"
    if made is None or len(absent) == len(STORE):
        return said
    return f"{app_traceback.definition(type(made), folder)} is no whole datastore: it has no {', '.join(absent)}"


def checked_prediction(prediction: Any, task: InferTask, shape: tuple[int, int, int], folder: Path) -> Prediction:
    """The prediction. Raises AppBroken if it is none, or its labels are no mask of an image of that shape."""
    found: Any = getattr(prediction, "labels", None)
    whole = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.uint8
    if whole and isinstance(prediction, Prediction):
        return prediction
    was = f"{found.dtype} of {found.shape}" if isinstance(found, np.ndarray) else _kind(found)
    what = f"labels that are {was}" if isinstance(prediction, Prediction) else _kind(prediction)
    where = app_traceback.definition(type(task), folder)
    raise AppBroken(f"{where}: predict must return a Prediction with labels that are uint8 of {shape}, not {what}")


def expected(hook: Any, made: Any, what: str, folder: Path) -> str:
    """The complaint about a hook that returned something else than a dict."""
    return f"{app_traceback.definition(hook, folder)} must return a dict of {what} by name, not {_kind(made)}"


def _kind(thing: Any) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
