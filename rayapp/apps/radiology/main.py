"""The radiology app: automatic segmentation, DeepEdit and DeepGrow on the published versions, what trains them, and
scribbles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayapp.app import LabelApp
from rayapp.config import Settings
from rayapp.errors import NotFound
from rayapp.inference.energy import likelihood
from rayapp.inference.energy.likelihood import LikelihoodFit
from rayapp.inference.infer_task import InferTask
from rayapp.inference.methods.closed_curves import ClosedCurvesTask
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.deepgrow_pipeline import DeepGrowPipelineTask
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.methods.refinement import RefinementTask
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.promptable import Promptable
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.options import ClickOptions, Options
from rayapp.training.train_task import TrainTask

SHIPPED = Path(__file__).parent / "weights"
TASKS: Mapping[str, type[SegmentationTask]] = {
    "segmentation": SegmentationTask,
    "deepedit": DeepEditTask,
    "deepgrow_2d": DeepGrow2DTask,
    "deepgrow_3d": DeepGrow3DTask,
}
ANY_STRUCTURE = ("deepgrow_2d", "deepgrow_3d")
"""Models of whatever is clicked, so of any labels that are wanted."""
SCRIBBLES = "scribbles"
"""In `--models`: what needs no weights, and a refinement of each network."""
ONLINE: Mapping[str, tuple[LikelihoodFit, str]] = {
    "Forest+GraphCut": (likelihood.forest, "random trees"),
    "GMM+GraphCut": (likelihood.gaussian_mixture, "Gaussian mixtures"),
    "Histogram+GraphCut": (likelihood.histogram, "histograms"),
}
REFINED = {"segmentation": "Segmentation+GraphCut", "deepedit": "DeepEdit+GraphCut"}


def shipped_card(name: str) -> dict[str, Any]:
    """The card of the weights that ship for this model."""
    card: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text())
    return card


class RadiologyApp(LabelApp):
    """What most annotators start with. A model serves once it has a version trained for the wanted labels."""

    name = "rayapp radiology"
    description = "Automatic segmentation, DeepEdit and DeepGrow for 3D radiology"
    version = "1"

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the shipped weights as the first version ever, unless other labels are wanted."""
        for name in settings.models:
            if name not in TASKS or models.versions(name) or not (SHIPPED / f"{name}.json").exists():
                continue
            card = shipped_card(name)
            if name in ANY_STRUCTURE or _fits(card, settings):
                models.publish(name, SHIPPED / f"{name}.safetensors", card)

    def init_infers(self) -> Mapping[str, InferTask]:
        """One task per published model whose labels are the wanted ones."""
        made: dict[str, InferTask] = {}
        for name in self.settings.models:
            if name == SCRIBBLES:
                continue
            if name not in TASKS:
                self.broken[name] = f"no such model; there are: {', '.join((*TASKS, SCRIBBLES))}"
                continue
            version = self.models.production(name)
            if version is None or not (name in ANY_STRUCTURE or _fits(version.card, self.settings)):
                continue
            task = self.guarded(name, partial(self.make_task, version))
            if task is not None:
                made[name] = task
        made.update(pipeline(made))
        return {**made, **scribbles(made)} if SCRIBBLES in self.settings.models else made

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """One for each wanted model, whether or not a version of it serves yet."""
        return {name: self._trainer(name) for name in self.settings.models if name in TASKS}

    def _trainer(self, name: str) -> TrainTask:
        conf = self.settings.conf
        clicks = ClickOptions().over(conf)
        if name == "deepgrow_2d":
            description = "DeepGrow 2D: any structure, slice by slice"
            return DeepGrow2dTrainTask(description=description, options=clicks, conf=conf)
        if name == "deepgrow_3d":
            return DeepGrowTrainTask(description="DeepGrow 3D: any structure", options=clicks, conf=conf)
        wanted = self.settings.labels
        labels = {label: value for value, label in enumerate(wanted, start=1)} or shipped_card(name)["labels"]
        if name == "deepedit":
            description = "DeepEdit: all structures at once, corrected by clicks"
            return DeepEditTrainTask(labels=labels, description=description, options=clicks, conf=conf)
        options = Options().over(conf)
        return BasicTrainTask(labels=labels, description="Automatic segmentation", options=options, conf=conf)

    def make_task(self, version: ModelVersion) -> InferTask:
        """The task of the model's kind, built as the version's card says."""
        if version.name not in TASKS:
            raise NotFound(f"no model {version.name!r}; there are: {', '.join(TASKS)}")
        if version.card["network"].get("name") == Promptable.__name__:
            return PromptableTask.from_version(version)
        return TASKS[version.name].from_version(version)


def pipeline(networks: Mapping[str, InferTask]) -> dict[str, InferTask]:
    """DeepGrow of both models together, once both serve."""
    flat, solid = (networks.get(name) for name in ANY_STRUCTURE)
    if not isinstance(flat, DeepGrow2DTask) or not isinstance(solid, DeepGrow3DTask):
        return {}
    description = "DeepGrow: slices by the 2D model, a volume of them by the 3D model"
    return {"deepgrow_pipeline": DeepGrowPipelineTask(model_2d=flat, model_3d=solid, description=description)}


def scribbles(networks: Mapping[str, InferTask]) -> dict[str, InferTask]:
    """The scribbles methods, by the names that 3D Slicer's panel shows: those without weights, and one per network."""
    made: dict[str, InferTask] = {
        name: ScribblesTask(fit=fit, description=f"Scribbles: appearance learnt by {by}, borders by graph cut")
        for name, (fit, by) in ONLINE.items()
    }
    made["ClosedCurves+GraphCut"] = ClosedCurvesTask(
        fit=likelihood.forest, description="Closed curves or painted slices, interpolated to a volume"
    )
    for name, network in networks.items():
        if name in REFINED and isinstance(network, SegmentationTask):
            made[REFINED[name]] = RefinementTask(network=network, description=f"Scribbles on what {name} proposes")
    return made


def _fits(card: Mapping[str, Any], settings: Settings) -> bool:
    """True when the card's labels, by value, are the wanted names in the wanted order (or none were wanted)."""
    labels = {value: name for name, value in card["labels"].items() if value}
    return not settings.labels or tuple(labels[value] for value in sorted(labels)) == settings.labels
