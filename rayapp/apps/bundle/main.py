"""The bundle app: serves MONAI bundles unchanged, from a folder or from MONAI's model zoo.

    rayapp start --app bundle --studies DIR --models spleen_ct_segmentation
    rayapp start --app bundle --studies DIR --conf bundles=/data/bundles

`--models` names bundles, which are folders in `--conf bundles=DIR` (by default `bundles` in the workspace). A bundle
that is not there is fetched from the zoo, in the newest version or in `--conf version.NAME=0.5.8`. Without `--models`
all bundles of the folder are served. `--conf zoo=ADDRESS` names a mirror of the zoo's index; `--conf url.NAME=ADDRESS
--conf sha256.NAME=DIGEST` fetches one bundle's archive from another address.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from rayapp.app import LabelApp
from rayapp.config import Settings
from rayapp.errors import NotFound, RayappError
from rayapp.inference.infer_task import InferTask
from rayapp.inference.methods.monai_bundle import DEEPEDIT, BundleTask
from rayapp.models import zoo
from rayapp.models.bundle_folder import METADATA, TRAIN, BundleFolder
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.protocol import checked_name
from rayapp.training.train_task import TrainTask

logger = logging.getLogger(__name__)

AUTOMATIC = "_seg"
"""Suffix of the model that is the automatic segmentation of a DeepEdit bundle."""


class BundleApp(LabelApp):
    """Each bundle is one model; a DeepEdit bundle is two, with and without prompts."""

    name = "rayapp bundles"
    description = "MONAI bundles"
    version = "1"

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:  # noqa: ARG003
        """Fetch bundles that are named and missing. One that cannot be fetched is logged and not served."""
        for name in names(settings):
            try:
                fetch(name, settings)
            except RayappError as error:
                logger.error("%s", error.detail)

    def init_infers(self) -> Mapping[str, InferTask]:
        """A task for each bundle, with its version in production, or with its own weights if it has none."""
        tasks: dict[str, InferTask] = {}
        for name in names(self.settings):
            task = self.guarded(name, partial(self._task_of, name))
            if isinstance(task, BundleTask):
                tasks[name] = task
                if task.kind == DEEPEDIT:
                    tasks[name + AUTOMATIC] = task.automatic()
        return tasks

    def _task_of(self, name: str) -> InferTask:
        version = self.models.production(name)
        return BundleTask(existing_folder(name, self.settings)) if version is None else self.make_task(version)

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """A trainer for each bundle with a train config."""
        trainers = {}
        for name in names(self.settings):
            folder = folder_of(name, self.settings)
            if folder.path(TRAIN) is not None:
                trainer = self.guarded(name, partial(_trainer, folder))
                if trainer is not None:
                    trainers[name] = trainer
        return trainers

    def make_task(self, version: ModelVersion) -> InferTask:
        """The bundle's task with the weights of a version.

        Raises:
            NotFound: If the app has no such bundle.
        """
        if version.name not in names(self.settings):
            raise NotFound(f"no bundle {version.name!r}; there are: {', '.join(names(self.settings)) or 'none'}")
        folder = folder_of(version.name, self.settings)
        return BundleTask(folder, weights=version.weights, version=version.version)


def _trainer(folder: BundleFolder) -> TrainTask:
    from rayapp.training.bundle_train import BundleTrainTask

    return BundleTrainTask(folder)


def names(settings: Settings) -> list[str]:
    """Names of the bundles to serve: those of `--models`, or else all in the folder."""
    if settings.models != Settings.model_fields["models"].default:
        return [checked_name(name, "model") for name in settings.models]
    return sorted(_bundles_in(bundles(settings)))


def bundles(settings: Settings) -> Path:
    """The folder that contains the bundles."""
    return Path(settings.conf.get("bundles") or settings.workspace / "bundles").expanduser()


def _bundles_in(folder: Path) -> Iterable[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if BundleFolder(path, path.name).path(METADATA) is not None]


def folder_of(name: str, settings: Settings) -> BundleFolder:
    """A bundle's folder, whether it exists or not."""
    return BundleFolder(bundles(settings) / name, name)


def fetch(name: str, settings: Settings) -> None:
    """Fetch a bundle into the folder, if it is not there.

    Raises:
        BadRequest, ModelBroken: See `zoo.fetch`.
    """
    conf = settings.conf
    zoo.fetch(
        name,
        bundles(settings),
        index=conf.get("zoo", zoo.INDEX),
        version=conf.get(f"version.{name}"),
        url=conf.get(f"url.{name}"),
        sha256=conf.get(f"sha256.{name}"),
    )


def existing_folder(name: str, settings: Settings) -> BundleFolder:
    """A bundle's folder.

    Raises:
        NotFound: If it does not exist.
    """
    folder = folder_of(name, settings)
    if not folder.root.is_dir():
        where = "the folder given as `--conf bundles`" if "bundles" in settings.conf else "the workspace's `bundles`"
        raise NotFound(f"bundle {name!r} is not in {where} and could not be downloaded: see the server's log")
    return folder
