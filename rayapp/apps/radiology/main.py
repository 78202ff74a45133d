"""The radiology app: automatic segmentation and DeepEdit on the published versions of their models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayapp.app import LabelApp
from rayapp.config import Settings
from rayapp.errors import NotFound
from rayapp.inference.deepedit import DeepEditTask
from rayapp.inference.segmentation import SegmentationTask
from rayapp.inference.task import InferTask
from rayapp.models.store import ModelStore, ModelVersion

SHIPPED = Path(__file__).parent / "weights"
TASKS = {"segmentation": SegmentationTask, "deepedit": DeepEditTask}


def shipped_card(name: str) -> dict[str, Any]:
    """The card of the weights that ship for this model."""
    card: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text())
    return card


class RadiologyApp(LabelApp):
    """What most annotators start with. A model serves once it has a version trained for the wanted labels."""

    name = "rayapp radiology"
    description = "Automatic segmentation and DeepEdit for 3D radiology"
    version = "1"

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the shipped weights as the first version ever, unless other labels are wanted."""
        for name in settings.models:
            if name not in TASKS or models.versions(name):
                continue
            card = shipped_card(name)
            if _fits(card, settings):
                models.publish(name, SHIPPED / f"{name}.safetensors", card)

    def init_infers(self) -> Mapping[str, InferTask]:
        """One task per published model whose labels are the wanted ones."""
        made: dict[str, InferTask] = {}
        for name in self.settings.models:
            if name not in TASKS:
                self.broken[name] = f"no such model; there are: {', '.join(TASKS)}"
                continue
            version = self.models.production(name)
            if version is None or not _fits(version.card, self.settings):
                continue
            task = self.guarded(name, partial(self.make_task, version))
            if task is not None:
                made[name] = task
        return made

    def make_task(self, version: ModelVersion) -> InferTask:
        """The task of the model's kind, built as the version's card says."""
        if version.name not in TASKS:
            raise NotFound(f"no model {version.name!r}; there are: {', '.join(TASKS)}")
        return TASKS[version.name].from_version(version)


def _fits(card: Mapping[str, Any], settings: Settings) -> bool:
    """True when the card's labels, by value, are the wanted names in the wanted order (or none were wanted)."""
    labels = {value: name for name, value in card["labels"].items() if value}
    return not settings.labels or tuple(labels[value] for value in sorted(labels)) == settings.labels
