"""LabelApp: what an app developer subclasses, and how an app is found.

An app is a folder with `main.py` that defines one subclass of `LabelApp`; what ships with rayapp (`rayapp.apps`) is
written the same way. An app object is made in the catalogue actor (to describe itself and to choose images) and in
every inference replica (to run its tasks); it must be cheap to make and load no weights before a task's `load`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayapp.active_learning.strategies import First, Random, Strategy
from rayapp.config import Settings
from rayapp.datastore.protocol import Datastore
from rayapp.errors import NotFound, RayappError
from rayapp.inference.task import InferTask, TaskInfo
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.task import TrainerInfo, TrainTask

logger = logging.getLogger(__name__)


class AppBroken(RayappError):
    """The app could not be found or made: the text says where."""


class LabelApp:
    """Base of every app: override the `init_*` hooks to bring models and strategies."""

    name = "rayapp"
    description = ""
    version = "1"

    def __init__(self, *, settings: Settings, models: ModelStore) -> None:
        self.settings = settings
        self.models = models
        self.broken: dict[str, str] = {}
        """Why a task is not served, by model name."""
        self.serving = {name: models.serving(name) for name in {*settings.models, *models.names()}}
        """The published version of each model when this app was made; None where there was none."""
        self.infers = self.init_infers()
        self.trainers = self.init_trainers()
        self.strategies = self.init_strategies()

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the weights that the app ships, where nothing was published yet. Called by the models' owner."""

    def init_infers(self) -> Mapping[str, InferTask]:
        """The models served, by name."""
        return {}

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """What can be trained, by model name."""
        return {}

    def init_strategies(self) -> Mapping[str, Strategy]:
        """How the next image is chosen, by name."""
        return {"first": First(), "random": Random()}

    def on_save_label(self, image_id: str, tag: str) -> Mapping[str, Any]:  # noqa: ARG002
        """Called after a label was durably saved; what it returns is merged into the reply."""
        return {}

    def guarded(self, name: str, make: Callable[[], InferTask]) -> InferTask | None:
        """Make a task; if that fails, note it in `broken`, log it and let the others serve."""
        try:
            return make()
        except Exception as error:
            logger.exception("model %s is not served", name)
            self.broken[name] = f"{type(error).__name__}: {error}"
            return None

    def make_task(self, version: ModelVersion) -> InferTask:
        """The task that serves this model version. Raises NotFound for a model that is not of this app."""
        raise NotFound(f"app {self.name!r} has no model {version.name!r}")

    def task(self, model: str) -> InferTask:
        """The task of that name. Raises NotFound naming what is there."""
        try:
            return self.infers[model]
        except KeyError:
            reason = f" ({self.broken[model]})" if model in self.broken else ""
            raise NotFound(f"no model {model!r}{reason}; there are: {', '.join(self.infers) or 'none'}") from None

    def load_all(self) -> None:
        """Load every task's weights; a task whose file is broken leaves `infers` and is named in `broken`."""
        served = {name: self.guarded(name, partial(_loaded, task)) for name, task in self.infers.items()}
        self.infers = {name: task for name, task in served.items() if task is not None}

    def renewed(self) -> LabelApp:
        """The app as of now: what serves another version is made and loaded anew, the other tasks are taken over."""
        app = type(self)(settings=self.settings, models=self.models)
        kept = {
            name: task
            for name, task in self.infers.items()
            if name in app.infers and app.serving.get(name) == self.serving.get(name)
        }
        app.infers = {**app.infers, **kept}
        app.load_all()
        return app

    def describe(self) -> dict[str, Any]:
        """`/info/` without the datastore's part: plain JSON."""
        infos = {name: task.info for name, task in self.infers.items()}
        return {
            "name": self.name,
            "description": self.description,
            "version": self.version,
            "labels": union_of_labels(infos.values()),
            "models": {name: _model_info(info) for name, info in infos.items()},
            "trainers": {name: _trainer_info(task.info) for name, task in self.trainers.items()},
            "strategies": {name: {"description": s.description} for name, s in self.strategies.items()},
            "scoring": {},
            "train_stats": {name: {} for name in self.trainers},
            "broken_models": dict(self.broken),
        }

    def next_image(self, strategy: str, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Let the strategy choose, record that it was handed out, answer as the clients expect; `{}` when none is left.

        Raises NotFound for an unknown strategy.
        """
        try:
            chosen = self.strategies[strategy]
        except KeyError:
            raise NotFound(f"no strategy {strategy!r}; there are: {', '.join(self.strategies)}") from None
        pick = chosen(request, datastore)
        if pick is None:
            return {}
        image = datastore.image(pick.image_id)
        client_id = request.get("client_id")
        datastore.serve_next(
            pick.image_id, strategy, client_id=None if client_id is None else str(client_id), ts=int(time.time())
        )
        return {"id": image.id, "path": str(image.path), **pick.extras, **image.info}


def _loaded(task: InferTask) -> InferTask:
    task.load()
    return task


def _model_info(info: TaskInfo) -> dict[str, Any]:
    return {
        "type": info.type,
        "labels": dict(info.labels),
        "dimension": info.dimension,
        "description": info.description,
        "config": dict(info.config),
        "version": info.version,
    }


def _trainer_info(info: TrainerInfo) -> dict[str, Any]:
    return {"description": info.description, "config": dict(info.config), "labels": dict(info.labels)}


def union_of_labels(infos: Any) -> list[str]:
    """Label names of all models, each model's by value, first come first (so `background`, 0, leads its model's)."""
    names: dict[str, None] = {}
    for info in infos:
        names.update(dict.fromkeys(sorted(info.labels, key=info.labels.__getitem__)))
    return list(names)


def app_class(settings: Settings) -> type[LabelApp]:
    """The app that `settings.app` names: one that ships, or a folder with `main.py`.

    Raises:
        AppBroken: if there is none, or it does not define exactly one subclass of LabelApp.
    """
    folder = Path(settings.app)
    if (folder / "main.py").is_file():
        module = _module_of(folder)
    else:
        try:
            module = importlib.import_module(f"rayapp.apps.{settings.app}.main")
        except ModuleNotFoundError as error:
            raise AppBroken(
                f"no app {settings.app!r}: name one that ships (radiology) or a folder with main.py"
            ) from error
    classes = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, LabelApp) and cls.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise AppBroken(f"{settings.app}/main.py must define one subclass of LabelApp; it defines {len(classes)}")
    return classes[0]


def _module_of(folder: Path) -> Any:
    name = f"rayapp_app_{folder.resolve().name}"
    spec = importlib.util.spec_from_file_location(name, folder / "main.py")
    if spec is None or spec.loader is None:
        raise AppBroken(f"{folder.name}/main.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder.resolve()))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
