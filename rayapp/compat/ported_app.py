"""An app of MONAI Label as a `LabelApp`."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

from rayapp.active_learning.scoring_methods import ScoringMethod
from rayapp.active_learning.strategies import Strategy
from rayapp.app import LabelApp, app_traceback
from rayapp.app.app_traceback import run_hook
from rayapp.compat import volume_reader
from rayapp.compat.network_infer import BasicInferTask
from rayapp.compat.ported_choice import PortedScoring, PortedStrategy, is_native
from rayapp.compat.ported_infer import PortedInfer, parts_of
from rayapp.compat.ported_train import PortedTrainer
from rayapp.compat.unavailable import Unavailable
from rayapp.config import Settings
from rayapp.errors import AppBroken, NotFound
from rayapp.inference.infer_task import InferTask
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.train_task import TrainTask

TOLD = 600
"""Characters of what an app printed before it called exit() that the error repeats."""


def ported(cls: type[Any], module: ModuleType) -> type[LabelApp]:
    """The class of an app as a subclass of `LabelApp`.

    Args:
        cls: The app's class, which extends MONAILabelApp.
        module: The app's main.py.
    """
    return type(cls.__name__, (PortedApp,), {"ported_class": cls, "__module__": module.__name__})


class PortedApp(LabelApp):
    """An app of MONAI Label, whose tasks are adapted one by one; those that cannot run are listed as broken."""

    ported_class: type[Any]

    def __init__(self, *, settings: Settings, models: ModelStore) -> None:
        volume_reader.register()
        self._ported = self._made(settings)
        self.name = self._ported.name or type(self).__name__
        self.description, self.version = self._ported.description, str(self._ported.version)
        super().__init__(settings=settings, models=models)

    def _made(self, settings: Settings) -> Any:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                return run_hook(
                    self.app_dir,
                    self.ported_class,
                    app_dir=str(self.app_dir),
                    studies=settings.dicomweb.url or str(settings.studies),
                    conf=dict(settings.conf),
                )
        except AppBroken as error:
            if not isinstance(error.__cause__, SystemExit):
                raise
            at = app_traceback.location(error.__cause__, self.app_dir)
            told = " ".join(re.sub("-{3,}", "", printed.getvalue()).split())[-TOLD:]
            raise AppBroken(f"the app called exit() at {at}: {told or 'it printed nothing'}") from error

    def init_infers(self) -> Mapping[str, InferTask]:
        """The app's models, each with its version in production or with the app's own weights."""
        tasks: dict[str, InferTask] = {}
        for name, raw in self._runnable(self._ported._infers, "").items():
            task = self.guarded(name, partial(self._infer, name, raw))
            if task is not None:
                tasks[name] = task
        return tasks

    def _infer(self, name: str, raw: Any) -> InferTask:
        if is_native(raw, "predict"):
            native: InferTask = raw
            return native
        if hasattr(raw, "native"):
            bundle: InferTask = raw.native(self.models.production(raw.name))
            return bundle
        for part in (raw, *parts_of(raw)):
            self._give_version(part)
        return PortedInfer(raw, name, vars(raw).get("_version", ""))

    def _give_version(self, raw: Any) -> None:
        """Let a task use the version in production of the model whose trainer publishes to one of its files."""
        if not isinstance(raw, BasicInferTask) or "_version" in vars(raw):
            return
        for name, trainer in self._ported._trainers.items():
            own = self._ported._infers.get(name) is raw
            if own or getattr(trainer, "_publish_path", None) in (set(raw.path) or {""}):
                version = self.models.production(name)
                if version is not None:
                    raw.path = [str(version.weights)]
                    vars(raw)["_version"] = version.version

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """The app's trainers."""
        trainers: dict[str, TrainTask] = {}
        for name, raw in self._runnable(self._ported._trainers, " (TrainTask)").items():
            make = raw.native if hasattr(raw, "native") else partial(PortedTrainer, raw, name)
            task = raw if is_native(raw, "train") and not callable(raw) else self.guarded(name, make)
            if task is not None:
                trainers[name] = task
        return trainers

    def init_strategies(self) -> Mapping[str, Strategy]:
        """rayapp's strategies and the app's."""
        own = self._runnable(self._ported._strategies, " (Strategy)")
        return {**super().init_strategies(), **{name: PortedStrategy(raw, name) for name, raw in own.items()}}

    def init_scoring_methods(self) -> Mapping[str, ScoringMethod]:
        """rayapp's scoring methods and the app's."""
        own = self._runnable(self._ported._scoring_methods, " (ScoringMethod)")
        methods = {name: raw if is_native(raw, "score") else PortedScoring(raw, name) for name, raw in own.items()}
        return {**super().init_scoring_methods(), **methods}

    def _runnable(self, returned: Any, kind: str) -> dict[str, Any]:
        """The return value of a hook, without stand-ins, which are listed as broken."""
        if not isinstance(returned, Mapping):
            raise AppBroken(f"the hooks of {type(self).__name__} must return dicts by name, not {returned!r:.80}")
        runnable = {}
        for name, raw in returned.items():
            if isinstance(raw, Unavailable):
                problem = raw.problem
                text = app_traceback.describe(problem, self.app_dir) if isinstance(problem, BaseException) else problem
                self._break(f"{name}{kind}", text)
            elif raw is not None:
                runnable[name] = raw
        return runnable

    def on_save_label(self, image_id: str, tag: str) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Call the app's hook; a label's id is that of its image."""
        self._ported.datastore().bind(self.datastore)
        self._ported.on_save_label(image_id, image_id)
        return {}

    def make_task(self, version: ModelVersion) -> InferTask:
        """The app's model with the weights of a version.

        Raises:
            NotFound: If the app has no such model.
        """
        raw = self._ported._infers.get(version.name)
        if raw is None or isinstance(raw, Unavailable):
            raise NotFound(f"app {self.name!r} has no model {version.name!r}")
        if hasattr(raw, "native"):
            bundle: InferTask = raw.native(version)
            return bundle
        return PortedInfer(raw, version.name).of_version(version.version, version.weights)
