"""LabelApp: the base class of apps.

An app is a folder with `main.py` that defines one subclass of `LabelApp`; the apps that ship (`rayapp.apps`) are
written the same way. An app is instantiated in the catalogue actor (to describe itself and to choose images), in every
inference replica (to run its tasks) and in every worker of a training or scoring job. Instantiation must be cheap:
weights are loaded by a task's `load`. The datastore actor runs an app's code only if the app brings a datastore. An
error in one task keeps that task from being served; an error in the app as a whole is AppBroken, which names file and
line.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rayapp.active_learning.scoring_methods import ScoringMethod, scoring_methods, scoring_models
from rayapp.active_learning.strategies import HOLDER, Pick, Strategy, strategies
from rayapp.app import app_traceback, validation
from rayapp.app.app_traceback import run_hook
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.errors import AppBroken, Busy, NotFound, RayappError
from rayapp.inference.infer_task import InferTask, TaskInfo
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.train_task import TrainerInfo, TrainTask

logger = logging.getLogger(__name__)

ATTEMPTS = 20
"""Attempts to lease an image while other clients lease the chosen one first."""
_retrying = threading.Lock()
"""Held by a client that lost an image to another client once: retries are serialised, so that no client loses
forever."""
PATIENCE_S = 60.0
"""Seconds that a datastore waits for the previous process to release the folder."""

T = TypeVar("T")


class LabelApp:
    """The base class of apps. Override the `init_*` hooks to bring models, trainers, strategies and scoring methods.

    Attributes:
        name: The app's name.
        description: One line for people.
        version: The app's version.
        app_dir: The folder of the app's main.py.
        settings: The server's settings: `settings.conf` has the `--conf KEY=VALUE` pairs, `settings.labels` the
            `--labels`, `settings.studies` and `settings.workspace` the folders.
        models: The store of model versions that were trained or uploaded.
        infers: Inference tasks by model name.
        trainers: Trainers by model name.
        strategies: Active learning strategies by name.
        scoring: Scoring methods by name.
        broken: The reason why a task is not served, by model name.
        serving: The version of each model that was in production when the app was instantiated, or None.
        datastore: The datastore, where the app chooses images and hears of saved labels; None in other processes.
    """

    name = "rayapp"
    description = ""
    version = "1"
    app_dir: Path
    datastore: Datastore | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.app_dir = Path(inspect.getfile(cls)).resolve().parent

    @classmethod
    def of(cls, settings: Settings) -> LabelApp:
        """Instantiate the app, with the model store of these settings.

        Raises:
            AppBroken: If a hook fails or returns something other than a dict.
        """
        return run_hook(cls.app_dir, cls, settings=settings, models=ModelStore.of(settings))

    def __init__(self, *, settings: Settings, models: ModelStore) -> None:
        """Call the hooks, and validate what they return.

        Args:
            settings: The server's settings.
            models: The store of model versions.

        Raises:
            AppBroken: If a hook fails or returns something other than a dict.
        """
        self.settings = settings
        self.models = models
        self.broken: dict[str, str] = {}
        self.serving = {name: models.serving(name) for name in {*settings.models, *models.names()}}
        self.infers = self._valid(self.init_infers, "InferTask", validation.INFER)
        self.trainers = self._valid(self.init_trainers, "TrainTask", validation.TRAIN)
        self.strategies = self._valid(self.init_strategies, "Strategy", validation.CHOOSE)
        self.scoring = self._valid(self.init_scoring_methods, "ScoringMethod", validation.SCORE)

    def _valid(self, hook: Callable[[], Mapping[str, T]], protocol: str, members: tuple[str, ...]) -> dict[str, T]:
        """The objects that a hook returns, without those that lack members of their protocol; these become `broken`."""
        returned: Any = run_hook(self.app_dir, hook)
        if not isinstance(returned, Mapping):
            raise AppBroken(validation.expected_dict(hook, returned, protocol, self.app_dir))
        valid = {}
        for name, thing in returned.items():
            problem = validation.problem_of(name, thing, members, self.app_dir)
            if problem is None:
                valid[name] = thing
            else:
                self._break(name if protocol == "InferTask" else f"{name} ({protocol})", problem)
        return valid

    def _break(self, name: str, reason: str) -> None:
        logger.error("%s is not served: %s", name, reason)
        self.broken[name] = reason

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the weights that the app ships, for models without versions. Called once when the server starts.

        Args:
            settings: The server's settings.
            models: The store of model versions.
        """

    @classmethod
    def init_datastore(cls, settings: Settings) -> Datastore:
        """The datastore: by default a folder or a DICOMweb archive, according to the settings.

        Called once, in the process that owns the data, before the app is instantiated; the datastore is then called
        from several threads. A custom datastore has all methods of `rayapp.datastore.interfaces.Datastore` and of
        `rayapp.datastore.job_record.Ledger`. The easiest way is to subclass `rayapp.datastore.local.LocalDatastore`, or
        to copy images into the folder `settings.studies` before calling this method.

        Args:
            settings: The server's settings.
        """
        if settings.dicomweb.url:
            from rayapp.datastore.dicomweb import DicomwebDatastore

            return DicomwebDatastore(settings, patience=PATIENCE_S)
        from rayapp.datastore.local import LocalDatastore

        return LocalDatastore(settings.studies, patience=PATIENCE_S)

    def init_infers(self) -> Mapping[str, InferTask]:
        """Hook: the inference tasks, by model name."""
        return {}

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """Hook: the trainers, by model name."""
        return {}

    def init_strategies(self) -> Mapping[str, Strategy]:
        """Hook: the active learning strategies, by name."""
        return strategies()

    def init_scoring_methods(self) -> Mapping[str, ScoringMethod]:
        """Hook: the scoring methods, by name."""
        return scoring_methods()

    def on_save_label(self, image_id: str, tag: str) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Hook: called after a label was saved durably. A failure is logged, and the label stays saved.

        Args:
            image_id: The image's id.
            tag: The label's tag.

        Returns:
            Fields to merge into the reply; plain JSON.
        """
        return {}

    def guarded(self, name: str, make: Callable[[], T]) -> T | None:
        """Make a task in a hook, without failing the hook: an exception is logged and recorded in `broken`.

        Args:
            name: Name of the model.
            make: Makes the task.

        Returns:
            The task, or None if `make` failed.
        """
        try:
            return make()
        except Exception as error:
            self._break(name, app_traceback.describe(error, self.app_dir))
            return None

    def make_task(self, version: ModelVersion) -> InferTask:
        """Hook: the inference task of a model version.

        Raises:
            NotFound: If the model is not one of the app's.
        """
        raise NotFound(f"app {self.name!r} has no model {version.name!r}")

    def task(self, model: str) -> InferTask:
        """The inference task of a model.

        Raises:
            NotFound: If there is none, with the names of all tasks.
        """
        try:
            return self.infers[model]
        except KeyError:
            reason = f" ({self.broken[model]})" if model in self.broken else ""
            raise NotFound(f"no model {model!r}{reason}; there are: {', '.join(self.infers) or 'none'}") from None

    def load_all(self) -> None:
        """Load the weights of all tasks. Tasks that cannot be loaded move from `infers` to `broken`."""
        loaded = {name: self.guarded(name, partial(_load, task)) for name, task in self.infers.items()}
        self.infers = {name: task for name, task in loaded.items() if task is not None}

    def renewed(self, *, load: bool = True) -> LabelApp:
        """A new app with the versions now in production. Tasks whose version is unchanged are shared with this app.

        Args:
            load: Load the weights of all other tasks, as for an app whose models are about to run.
        """
        app = type(self)(settings=self.settings, models=self.models)
        app.datastore = self.datastore
        unchanged = {
            name: task
            for name, task in self.infers.items()
            if name in app.infers
            and app.serving.get(name) == self.serving.get(name)
            and _versions(app.infers[name]) == _versions(task)  # of tasks that are composed of other models
        }
        app.infers = {**app.infers, **unchanged}
        still_broken = {
            name: reason
            for name, reason in self.broken.items()
            if name in app.infers
            and app.serving.get(name) == self.serving.get(name)
            and app.infers[name].version in ("", app.serving.get(name))
        }
        if not load:
            app.infers = {name: task for name, task in app.infers.items() if name not in still_broken}
            app.broken = {**still_broken, **app.broken}
        else:
            app.load_all()
        return app

    def info(self) -> dict[str, Any]:
        """The app's part of `/info/`; plain JSON."""
        infos = {name: task.info for name, task in self.infers.items()}
        return {
            "name": self.name,
            "description": self.description,
            "version": self.version,
            "labels": list(dict.fromkeys((*self.settings.labels, *union_of_labels(infos.values())))),
            "models": {name: _model_info(info) for name, info in infos.items()},
            "trainers": {name: _trainer_info(task.info) for name, task in self.trainers.items()},
            "strategies": {name: {"description": s.description} for name, s in self.strategies.items()},
            "scoring": {name: self._scoring_info(method) for name, method in self.scoring.items()},
            "train_stats": {name: {} for name in self.trainers},
            "broken_models": dict(self.broken),
        }

    def _scoring_info(self, method: ScoringMethod) -> dict[str, Any]:
        models = {"model": scoring_models(self.infers)} if method.needs_model else {}
        return {"description": method.description, "config": {**models, **method.config}}

    def next_image(self, strategy: str, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Choose the next image and lease it to the request's `holder`.

        Other holders do not get the image before the lease expires.

        Args:
            strategy: Name of the strategy.
            request: The client's options, with `holder` and `client_id`.
            datastore: The datastore.

        Returns:
            The reply that MONAI Label's clients expect: `id`, `path` and the image's info; empty when no image is left.

        Raises:
            NotFound: If there is no such strategy.
            AppBroken: If the strategy fails, or returns something other than a `Pick`.
            Busy: If other clients leased the chosen image first at each attempt.
        """
        try:
            choose = self.strategies[strategy]
        except KeyError:
            raise NotFound(f"no strategy {strategy!r}; there are: {', '.join(self.strategies)}") from None
        sent = request.get("client_id")
        client_id = None if sent is None else str(sent)
        lease = partial(datastore.serve_next, client_id=client_id, ts=int(time.time()), holder=request.get(HOLDER))
        for attempt in range(ATTEMPTS):
            with _retrying if attempt else nullcontext():
                pick = self._pick(strategy, choose, request, datastore)
                if pick is None:
                    return {}
                image = lease(pick.image_id, strategy)
            if image is not None:
                path = str(image.path) if image.ext else ""  # 3D Slicer opens it, and cannot open a folder of slices
                return {"id": image.id, "path": path, **pick.extras, **image.info}
        raise Busy("other clients lease the chosen images first; try again in a second")

    def _pick(self, name: str, choose: Strategy, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        try:
            pick: Any = choose(request, datastore)
        except RayappError:
            raise
        except Exception as error:  # whose text may contain patient data, which must not be sent
            line = app_traceback.location(error, self.app_dir)
            raise AppBroken(f"strategy {name!r} failed with {type(error).__name__} at {line or 'its call'}") from error
        if pick is not None and not isinstance(pick, Pick):
            where = app_traceback.definition(type(choose), self.app_dir)
            raise AppBroken(f"{where} must return a Pick or None, not a {type(pick).__name__}")
        return pick


def _versions(task: Any) -> list[str]:
    """The version of a task, and those of the tasks that it holds, as a pipeline or an ensemble does."""
    versions = [str(task.version)]
    for value in getattr(task, "__dict__", {}).values():
        held = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        for part in held:
            if hasattr(part, "predict") and hasattr(part, "version"):
                versions += _versions(part)
    return versions


def _load(task: InferTask) -> InferTask:
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
    """Label names of all models without repetition, model by model, each model's in the order of values."""
    names: dict[str, None] = {}
    for info in infos:
        names.update(dict.fromkeys(sorted(info.labels, key=info.labels.__getitem__)))
    return list(names)
