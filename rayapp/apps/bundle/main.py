"""The bundle app: MONAI bundles, from a folder or from the zoo, served as they are.

    rayapp start --app bundle --studies DIR --models spleen_ct_segmentation
    rayapp start --app bundle --studies DIR --conf bundles=/data/bundles

`--models` names bundles: folders in `--conf bundles=DIR` (default: `bundles` in the workspace), fetched from the zoo if
they are not there, the newest version or `--conf version.NAME=0.5.8`. Without `--models` all bundles of the folder are
served. `--conf zoo=ADDRESS` is a mirror of the zoo's index; `--conf url.NAME=ADDRESS --conf sha256.NAME=DIGEST` fetches
one bundle's archive from elsewhere.
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
"""Behind a DeepEdit's name: its automatic segmentation, as a model of its own."""


class BundleApp(LabelApp):
    """Each bundle is a model; a DeepEdit is two."""

    name = "rayapp bundles"
    description = "MONAI bundles, as they are"
    version = "1"

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:  # noqa: ARG003
        """Fetch what is named and not there. What cannot be fetched is broken, and the others serve."""
        for name in names(settings):
            try:
                fetch(name, settings)
            except RayappError as error:
                logger.error("%s", error.detail)

    def init_infers(self) -> Mapping[str, InferTask]:
        """One task per bundle, with the weights of its newest published version if it was trained since."""
        made: dict[str, InferTask] = {}
        for name in names(self.settings):
            task = self.guarded(name, partial(self._served, name))
            if isinstance(task, BundleTask):
                made[name] = task
                if task.kind == DEEPEDIT:
                    made[name + AUTOMATIC] = task.automatic()
        return made

    def _served(self, name: str) -> InferTask:
        version = self.models.production(name)
        return BundleTask(fetched(name, self.settings)) if version is None else self.make_task(version)

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """One per bundle with a train config."""
        made = {}
        for name in names(self.settings):
            folder = folder_of(name, self.settings)
            if folder.path(TRAIN) is not None:
                trainer = self.guarded(name, partial(_trainer, folder))
                if trainer is not None:
                    made[name] = trainer
        return made

    def make_task(self, version: ModelVersion) -> InferTask:
        """The bundle with the weights of a version."""
        if version.name not in names(self.settings):
            raise NotFound(f"no bundle {version.name!r}; there are: {', '.join(names(self.settings)) or 'none'}")
        folder = folder_of(version.name, self.settings)
        return BundleTask(folder, weights=version.weights, version=version.version)


def _trainer(folder: BundleFolder) -> TrainTask:
    from rayapp.training.bundle_train import BundleTrainTask

    return BundleTrainTask(folder)


def names(settings: Settings) -> list[str]:
    """The bundles that are asked for: those of `--models`, else all in the folder."""
    if settings.models != Settings.model_fields["models"].default:
        return [checked_name(name, "model") for name in settings.models]
    return sorted(_found(bundles(settings)))


def bundles(settings: Settings) -> Path:
    """The folder with the bundles."""
    return Path(settings.conf.get("bundles") or settings.workspace / "bundles").expanduser()


def _found(folder: Path) -> Iterable[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if BundleFolder(path, path.name).path(METADATA) is not None]


def folder_of(name: str, settings: Settings) -> BundleFolder:
    """Where a bundle lies, or would."""
    return BundleFolder(bundles(settings) / name, name)


def fetch(name: str, settings: Settings) -> None:
    """Bring a bundle into the folder if it is not there. Raises BadRequest and ModelBroken as `zoo.fetch` does."""
    conf = settings.conf
    zoo.fetch(
        name,
        bundles(settings),
        index=conf.get("zoo", zoo.INDEX),
        version=conf.get(f"version.{name}"),
        url=conf.get(f"url.{name}"),
        sha256=conf.get(f"sha256.{name}"),
    )


def fetched(name: str, settings: Settings) -> BundleFolder:
    """The bundle's folder. Raises NotFound, saying what was tried, if it is not there."""
    folder = folder_of(name, settings)
    if not folder.root.is_dir():
        where = "the folder given as `--conf bundles`" if "bundles" in settings.conf else "the workspace's `bundles`"
        raise NotFound(f"bundle {name!r} is not in {where} and could not be downloaded: the server's log says why")
    return folder
