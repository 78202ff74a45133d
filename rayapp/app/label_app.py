"""LabelApp: what an app developer subclasses, and how an app is found.

An app is a folder with `main.py` that defines one subclass of `LabelApp`; what ships with rayapp (`rayapp.apps`) is
written the same way. An app object is made in the catalogue actor (to describe itself and to choose images), in every
inference replica (to run its tasks) and in every worker of a training; it must be cheap to make and load no weights
before a task's `load`. The datastore actor runs an app's code only if that brings a datastore. What is wrong with one
task keeps that task from being served; what is wrong with the app as a whole is AppBroken, which names the file and
the line.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TypeVar

from rayapp.active_learning.scoring_methods import ScoringMethod, scoring_methods, scoring_models
from rayapp.active_learning.strategies import HOLDER, Pick, Strategy, strategies
from rayapp.app import app_traceback, validation
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.errors import AppBroken, Busy, NotFound, RayappError
from rayapp.inference.infer_task import InferTask, TaskInfo
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.train_task import TrainerInfo, TrainTask

logger = logging.getLogger(__name__)

ATTEMPTS = 20
"""Times that a strategy is asked while others are quicker to get what it chose."""
_turns = threading.Lock()
"""Whoever was too slow once asks again in turn: many who ask for the one best image would else lose for ever."""
PATIENCE_S = 60.0
"""How long a datastore waits for the process before it to let go of the folder."""
DATASTORE_HOOK = "init_datastore"
UNUSED = ("test", "antigravity", "this")
"""Modules of Python's that nothing imports."""

T = TypeVar("T")


class LabelApp:
    """Base of every app: override the `init_*` hooks to bring models, trainers and strategies.

    Besides its hooks an app has `settings` (`settings.conf` holds the `--conf KEY=VALUE` pairs, `settings.labels` the
    `--labels`, `settings.studies` and `settings.workspace` the folders), `models` (the versions that were trained or
    uploaded) and `app_dir` (its own folder).
    """

    name = "rayapp"
    description = ""
    version = "1"
    app_dir: Path
    """The folder of the app's main.py."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        cls.app_dir = Path(inspect.getfile(cls)).resolve().parent

    @classmethod
    def of(cls, settings: Settings) -> LabelApp:
        """The app over the models of these settings. Raises AppBroken."""
        return run_hook(cls.app_dir, cls, settings=settings, models=ModelStore.of(settings))

    def __init__(self, *, settings: Settings, models: ModelStore) -> None:
        self.settings = settings
        self.models = models
        self.broken: dict[str, str] = {}
        """Why a task is not served, by model name."""
        self.serving = {name: models.serving(name) for name in {*settings.models, *models.names()}}
        """The published version of each model when this app was made; None where there was none."""
        self.infers = self._made(self.init_infers, "InferTask", validation.INFER)
        self.trainers = self._made(self.init_trainers, "TrainTask", validation.TRAIN)
        self.strategies = self._made(self.init_strategies, "Strategy", validation.CHOOSE)
        self.scoring = self._made(self.init_scoring_methods, "ScoringMethod", validation.SCORE)

    def _made(self, hook: Callable[[], Mapping[str, T]], what: str, members: tuple[str, ...]) -> dict[str, T]:
        """What a hook returns, without those that do not answer to their protocol: these are named in `broken`.

        Raises AppBroken if the hook fails.
        """
        made: Any = run_hook(self.app_dir, hook)
        if not isinstance(made, Mapping):
            raise AppBroken(validation.expected(hook, made, what, self.app_dir))
        sound = {}
        for name, thing in made.items():
            wrong = validation.complaint(name, thing, members, self.app_dir)
            if wrong is None:
                sound[name] = thing
            else:
                self._note(name if what == "InferTask" else f"{name} ({what})", wrong)
        return sound

    def _note(self, name: str, wrong: str) -> None:
        logger.error("%s is not served: %s", name, wrong)
        self.broken[name] = wrong

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the weights that the app ships, where nothing was published yet. Called by the models' owner."""

    @classmethod
    def init_datastore(cls, settings: Settings) -> Datastore:
        """Where images and labels are kept: a folder, or an archive, as the settings say.

        Called once, in the one process that owns the data, before any app object is made; several threads then call
        what it returns. One of an app's own answers `rayapp.datastore.interfaces.Datastore` whole, and keeps records of
        jobs (`rayapp.datastore.job_record.Ledger`); the least work is a subclass of
        `rayapp.datastore.local.LocalDatastore`, or one that brings images into the folder
        `settings.studies` before it calls this.
        """
        if settings.dicomweb.url:
            from rayapp.datastore.dicomweb import DicomwebDatastore

            return DicomwebDatastore(settings, patience=PATIENCE_S)
        from rayapp.datastore.local import LocalDatastore

        return LocalDatastore(settings.studies, patience=PATIENCE_S)

    def init_infers(self) -> Mapping[str, InferTask]:
        """The models served, by name."""
        return {}

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """What can be trained, by model name."""
        return {}

    def init_strategies(self) -> Mapping[str, Strategy]:
        """How the next image is chosen, by name."""
        return strategies()

    def init_scoring_methods(self) -> Mapping[str, ScoringMethod]:
        """How images are scored, by name."""
        return scoring_methods()

    def on_save_label(self, image_id: str, tag: str) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Called after a label was durably saved; what it returns is merged into the reply. Failing, it is logged:
        the label stays saved."""
        return {}

    def guarded(self, name: str, make: Callable[[], T]) -> T | None:
        """Make a task; if that fails, note it in `broken`, log it and let the others serve."""
        try:
            return make()
        except Exception as error:
            self._note(name, app_traceback.told(error, self.app_dir))
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

    def renewed(self, *, load: bool = True) -> LabelApp:
        """The app with the versions that are served now.

        Tasks of models that serve another version are made anew, the others are taken over.

        Args:
            load: load all weights that are not loaded yet, as for an app whose models are about to run.
        """
        app = type(self)(settings=self.settings, models=self.models)
        kept = {
            name: task
            for name, task in self.infers.items()
            if name in app.infers
            and app.serving.get(name) == self.serving.get(name)
            and app.infers[name].version == task.version  # of tasks that are made of other models
        }
        app.infers = {**app.infers, **kept}
        if load:
            app.load_all()
        return app

    def info(self) -> dict[str, Any]:
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
            "scoring": {name: self._scoring_info(method) for name, method in self.scoring.items()},
            "train_stats": {name: {} for name in self.trainers},
            "broken_models": dict(self.broken),
        }

    def _scoring_info(self, method: ScoringMethod) -> dict[str, Any]:
        models = {"model": scoring_models(self.infers)} if method.needs_model else {}
        return {"description": method.description, "config": {**models, **method.config}}

    def next_image(self, strategy: str, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Let the strategy choose, record that it was handed out, answer as the clients expect; `{}` when none is left.

        What the request's `holder` got nobody else gets, until it is labelled or nobody has worked on it for a while.
        Raises NotFound for an unknown strategy.
        """
        try:
            chosen = self.strategies[strategy]
        except KeyError:
            raise NotFound(f"no strategy {strategy!r}; there are: {', '.join(self.strategies)}") from None
        asked = request.get("client_id")
        client_id = None if asked is None else str(asked)
        serve = partial(datastore.serve_next, client_id=client_id, ts=int(time.time()), holder=request.get(HOLDER))
        for attempt in range(ATTEMPTS):
            with _turns if attempt else nullcontext():
                pick = self._picked(strategy, chosen, request, datastore)
                if pick is None:
                    return {}
                image = serve(pick.image_id, strategy)
            if image is not None:
                path = str(image.path) if image.ext else ""  # 3D Slicer opens it, and cannot open a folder of slices
                return {"id": image.id, "path": path, **pick.extras, **image.info}
        raise Busy("others ask for images at the same moment; try again in a second")

    def _picked(self, name: str, chosen: Strategy, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        try:
            pick: Any = chosen(request, datastore)
        except RayappError:
            raise
        except Exception as error:  # whose text may hold what no reply should
            at = app_traceback.place(error, self.app_dir)
            raise AppBroken(f"strategy {name!r} failed with {type(error).__name__} at {at or 'its call'}") from error
        if pick is not None and not isinstance(pick, Pick):
            where = app_traceback.definition(type(chosen), self.app_dir)
            raise AppBroken(f"{where} must return a Pick or None, not a {type(pick).__name__}")
        return pick


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
        AppBroken: if there is none, its code cannot be run, or it does not define exactly one subclass of LabelApp.
    """
    folder = Path(settings.app)
    if (folder / "main.py").is_file():
        with _running:
            module = _module_of(folder.resolve())
    else:
        try:
            module = importlib.import_module(f"rayapp.apps.{settings.app}.main")
        except ModuleNotFoundError as error:
            raise AppBroken(f"no app {settings.app!r}: name one that ships or a folder with main.py") from error
    classes = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, LabelApp) and cls.__module__ == module.__name__
    ]
    if len(classes) != 1:
        found = ", ".join(app_traceback.definition(cls, folder) for cls in classes) or "none"
        raise AppBroken(f"main.py of app {folder.name!r} must define one subclass of LabelApp; it defines {found}")
    return classes[0]


def brings_datastore(settings: Settings) -> bool:
    """Whether an app of one's own has the hook for it: the datastore's process runs the code of no other."""
    folder = Path(settings.app)
    sources = [folder / "main.py", *folder.glob("lib/**/*.py")] if (folder / "main.py").is_file() else []
    return any(DATASTORE_HOOK in source.read_text(errors="replace") for source in sources)


def own_datastore(settings: Settings) -> Datastore:
    """What the app's hook makes. Raises AppBroken if it fails, or if what it makes is no datastore."""
    cls = app_class(settings)
    made: Any = run_hook(cls.app_dir, cls.init_datastore, settings=settings)
    wrong = validation.store_complaint(cls.init_datastore, made, cls.app_dir)
    if wrong is not None:
        raise AppBroken(wrong)
    store: Datastore = made
    return store


def run_hook(folder: Path, hook: Callable[..., T], **given: Any) -> T:
    """What code of the app in `folder` returns. Raises AppBroken, with the place, for whatever else it raises."""
    try:
        return hook(**given)
    except RayappError:
        raise
    except Exception as error:
        raise AppBroken(f"{hook.__name__} failed: {app_traceback.told(error, folder)}") from error


def _module_of(folder: Path) -> Any:
    """Run main.py, with the folder on the import path, and what it imports from there read anew."""
    name = f"rayapp_app_{folder.name}"
    for known, module in list(sys.modules.items()):
        if known.startswith("rayapp_app_") or _lies_in_app(module):
            del sys.modules[known]
    _refuse_hiding(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in _folders)]
    _folders[:] = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder / "main.py")
    if spec is None or spec.loader is None:
        raise AppBroken(f"main.py of app {folder.name!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise AppBroken(f"app {folder.name!r} cannot be run: {app_traceback.told(error, folder)}") from error
    return module


def _refuse_hiding(folder: Path) -> None:
    """Raise AppBroken for a module beside main.py that whatever runs the app would import in place of another."""
    for path in sorted(folder.iterdir()):
        name = path.stem if path.suffix == ".py" else path.name if (path / "__init__.py").is_file() else ""
        python = name in sys.stdlib_module_names and name not in UNUSED
        if python or name in sys.modules:
            whose = "Python's own module" if python else "the package"
            raise AppBroken(
                f"{path.name} of app {folder.name!r} would hide {whose} {name!r} from the server: "
                f"call it something else, or put it into lib/ and import lib.{name}"
            )


_running = threading.Lock()
"""Held while an app's code is run: what it imports is taken out of the process first."""
_folders: list[str] = []
"""The folder of the app that was run last: one at a time is on the import path, since each has its own `lib`."""


def _lies_in_app(module: Any) -> bool:
    spec = getattr(module, "__spec__", None)
    if not isinstance(spec, ModuleSpec):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return any(f"{place}{os.sep}".startswith(f"{folder}{os.sep}") for place in places if place for folder in _folders)
