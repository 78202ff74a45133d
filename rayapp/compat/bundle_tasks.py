"""`BundleInferTask` and `BundleTrainTask`, by rayapp's own tasks for MONAI bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayapp.inference.infer_task import InferTask
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import METADATA, TRAIN, BundleFolder
from rayapp.models.store import ModelVersion
from rayapp.training.bundle_train import BundleTrainTask as NativeTrainTask
from rayapp.training.train_task import TrainTask


class BundleInferTask:
    """A MONAI bundle as a model.

    Args:
        path: The bundle's folder.
        conf: The server's `--conf` pairs.
        type: `segmentation` for the automatic model of a DeepEdit bundle.
    """

    def __init__(self, path: str, conf: Mapping[str, str], type: Any = None, **_: Any) -> None:
        self.name = Path(path).name
        self.folder = BundleFolder(Path(path), self.name)
        self.conf = conf
        self.type = str(type or "")

    def is_valid(self) -> bool:
        """True if the folder is a bundle."""
        return self.folder.path(METADATA) is not None

    def native(self, version: ModelVersion | None) -> InferTask:
        """rayapp's task, with the weights of a version or with the bundle's own."""
        task = (
            BundleTask(self.folder)
            if version is None
            else BundleTask(self.folder, weights=version.weights, version=version.version)
        )
        return task.automatic() if self.type == "segmentation" and task.kind == "deepedit" else task


class BundleTrainTask:
    """The trainer of a MONAI bundle.

    Args:
        path: The bundle's folder.
        conf: The server's `--conf` pairs.
    """

    def __init__(self, path: str, conf: Mapping[str, str], **_: Any) -> None:
        self.name = Path(path).name
        self.folder = BundleFolder(Path(path), self.name)
        self.conf = conf

    def is_valid(self) -> bool:
        """True if the bundle has a train config."""
        return self.folder.path(TRAIN) is not None

    def native(self) -> TrainTask:
        """rayapp's trainer."""
        return NativeTrainTask(self.folder)
