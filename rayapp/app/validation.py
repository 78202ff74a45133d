"""Validation of the objects that an app brings against their protocols. Pure functions."""

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


def problem_of(name: Any, thing: Any, members: tuple[str, ...], folder: Path) -> str | None:
    """The reason why an object cannot be served, for the app's author.

    Args:
        name: The name that the app gives the object.
        thing: The object.
        members: Members of its protocol, one of the tuples above; names with parentheses are methods.
        folder: The app's folder.

    Returns:
        The reason, or None if the object is valid.
    """
    try:
        checked_name(name if isinstance(name, str) else repr(name), "name")
        problem = _missing_member(thing, members)
        return None if problem is None else f"{app_traceback.definition(type(thing), folder)}{problem}"
    except RayappError as error:
        return error.detail
    except Exception as error:
        return app_traceback.describe(error, folder)


def _missing_member(thing: Any, members: tuple[str, ...]) -> str | None:
    for member in members:
        attribute = getattr(thing, member.partition("(")[0], None)
        if attribute is None or ("(" in member and not callable(attribute)):
            return f" needs {'a method' if '(' in member else 'an attribute or property'} {member}"
    info_class = _INFOS.get(members)
    return None if info_class is None else _problem_of_info(thing.info, info_class)


def _problem_of_info(info: Any, info_class: Any) -> str | None:
    if not isinstance(info, info_class):
        return f": its info must be a {info_class.__name__}, not {_type_name(info)}"
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


def datastore_problem(hook: Any, returned: Any, folder: Path) -> str | None:
    """The reason why the object that `init_datastore` returned is not a datastore; None if it is one.

    Args:
        hook: The hook.
        returned: The object.
        folder: The app's folder.
    """
    missing = [name for name in STORE if not callable(getattr(returned, name, None))]
    if not missing:
        return None
    if returned is None or len(missing) == len(STORE):
        return f"{app_traceback.definition(hook, folder)} must return a datastore, not {_type_name(returned)}"
    return (
        f"{app_traceback.definition(type(returned), folder)} is an incomplete datastore: "
        f"it lacks the methods {', '.join(missing)}"
    )


def checked_prediction(prediction: Any, task: InferTask, shape: tuple[int, int, int], folder: Path) -> Prediction:
    """The object that a task's `predict` returned, if it is a valid prediction.

    Args:
        prediction: The object.
        task: The task.
        shape: Shape of the image, (I, J, K).
        folder: The app's folder.

    Raises:
        AppBroken: If it is not a Prediction, or its labels are not uint8 of the image's shape.
    """
    labels: Any = getattr(prediction, "labels", None)
    is_mask = isinstance(labels, np.ndarray) and labels.shape == shape and labels.dtype == np.uint8
    if is_mask and isinstance(prediction, Prediction):
        return prediction
    actual = f"{labels.dtype} of {labels.shape}" if isinstance(labels, np.ndarray) else _type_name(labels)
    what = f"labels that are {actual}" if isinstance(prediction, Prediction) else _type_name(prediction)
    where = app_traceback.definition(type(task), folder)
    raise AppBroken(f"{where}: predict must return a Prediction with labels that are uint8 of {shape}, not {what}")


def expected_dict(hook: Any, returned: Any, protocol: str, folder: Path) -> str:
    """The error text for a hook that returned something other than a dict of objects by name."""
    where = app_traceback.definition(hook, folder)
    return f"{where} must return a dict of {protocol} by name, not {_type_name(returned)}"


def _type_name(thing: Any) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
