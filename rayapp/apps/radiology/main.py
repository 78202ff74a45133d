"""The radiology app: automatic segmentation, DeepEdit, DeepGrow and scribbles, with trainers for the networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayapp.app import LabelApp
from rayapp.config import Settings
from rayapp.errors import BadRequest, NotFound
from rayapp.inference.energy import likelihood
from rayapp.inference.energy.likelihood import LikelihoodFit
from rayapp.inference.infer_task import InferTask
from rayapp.inference.methods.closed_curves import ClosedCurvesTask
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.deepgrow_pipeline import DeepGrowPipelineTask
from rayapp.inference.methods.nninteractive_infer import NNInteractiveTask
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.methods.promptable_slice import PromptableSliceTask
from rayapp.inference.methods.refinement import RefinementTask
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.nninteractive_folder import NNInteractiveFolder
from rayapp.models.promptable import Promptable
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.options import ClickOptions, Options, PromptableOptions
from rayapp.training.promptable_train import PromptableTrainTask
from rayapp.training.train_task import TrainTask

SHIPPED = Path(__file__).parent / "weights"
TASKS: Mapping[str, type[SegmentationTask]] = {
    "segmentation": SegmentationTask,
    "deepedit": DeepEditTask,
    "deepgrow_2d": DeepGrow2DTask,
    "deepgrow_3d": DeepGrow3DTask,
}
ANY_STRUCTURE = ("deepgrow_2d", "deepgrow_3d")
"""Models that segment any structure from prompts, whatever the labels of the server."""
NNINTERACTIVE = "nninteractive"
"""Name in `--models` for a model folder of nnInteractive, and in `--conf` for its path or its official id."""
SCRIBBLES = "scribbles"
"""Name in `--models` for the methods without weights and the refinement of each network by scribbles."""
ONLINE: Mapping[str, tuple[LikelihoodFit, str]] = {
    "Forest+GraphCut": (likelihood.forest, "random trees"),
    "GMM+GraphCut": (likelihood.gaussian_mixture, "Gaussian mixtures"),
    "Histogram+GraphCut": (likelihood.histogram, "histograms"),
}
REFINED = {"segmentation": "Segmentation+GraphCut", "deepedit": "DeepEdit+GraphCut"}


def shipped_card(name: str) -> dict[str, Any]:
    """The card of the weights that ship for a model."""
    card: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text())
    return card


class RadiologyApp(LabelApp):
    """The app for most annotators. A model is served once it has a version that was trained for the server's labels."""

    name = "rayapp radiology"
    description = "Automatic segmentation, DeepEdit and DeepGrow for 3D radiology"
    version = "1"

    @classmethod
    def install(cls, settings: Settings, models: ModelStore) -> None:
        """Publish the shipped weights for models without versions, unless the server has other labels."""
        for name in settings.models:
            if name not in TASKS or models.versions(name) or not (SHIPPED / f"{name}.json").exists():
                continue
            card = shipped_card(name)
            if name in ANY_STRUCTURE or _fits(card, settings):
                models.publish(name, SHIPPED / f"{name}.safetensors", card)

    def init_infers(self) -> Mapping[str, InferTask]:
        """A task for each model whose version in production has the server's labels, and the scribble methods."""
        tasks: dict[str, InferTask] = {}
        for name in self.settings.models:
            if name == SCRIBBLES:
                continue
            if name == NNINTERACTIVE:
                brought = self.guarded(name, self._nninteractive)
                tasks |= {} if brought is None else {name: brought}
                continue
            if name not in TASKS:
                names = (*TASKS, NNINTERACTIVE, SCRIBBLES)
                self.broken[name] = f"the app has no such model; there are: {', '.join(names)}"
                continue
            version = self.models.production(name)
            if version is None:
                continue
            if name not in ANY_STRUCTURE and not _fits(version.card, self.settings):
                self.broken[name] = _other_labels(version, self.settings)
                continue
            task = self.guarded(name, partial(self.make_task, version))
            if task is not None:
                tasks[name] = task
        tasks.update(pipeline(tasks))
        if "deepgrow_2d" in self.settings.models and "deepgrow_2d" not in {*tasks, *self.broken}:
            tasks.update(slices(tasks))
        return {**tasks, **scribbles(tasks)} if SCRIBBLES in self.settings.models else tasks

    def _nninteractive(self) -> InferTask:
        """The task of the model folder that `--conf` names.

        Raises:
            BadRequest: If it names none.
            NotFound, ModelBroken: See `NNInteractiveFolder.find`.
        """
        named = self.settings.conf.get(NNINTERACTIVE)
        if not named:
            raise BadRequest(f"name a model folder, or an official id: --conf {NNINTERACTIVE}=nnInteractive_v1.0")
        return NNInteractiveTask(NNINTERACTIVE, NNInteractiveFolder.find(named))

    def init_trainers(self) -> Mapping[str, TrainTask]:
        """A trainer for each model of `--models` that has a network, whether or not it has a version yet."""
        return {name: self._trainer(name) for name in self.settings.models if name in TASKS}

    def _trainer(self, name: str) -> TrainTask:
        conf = self.settings.conf
        clicks = ClickOptions(max_epochs=0).over(conf)
        if name == "deepgrow_2d":
            description = "DeepGrow 2D: any structure, slice by slice"
            return DeepGrow2dTrainTask(description=description, options=clicks, conf=conf)
        if name == "deepgrow_3d":
            return PromptableTrainTask(
                shipped=SHIPPED / f"{name}.safetensors",
                card=shipped_card(name),
                scratch=DeepGrowTrainTask(description="DeepGrow 3D: any structure", options=clicks, conf=conf),
                options=PromptableOptions().over(conf),
            )
        names = self.settings.labels
        labels = {label: value for value, label in enumerate(names, start=1)} or shipped_card(name)["labels"]
        if name == "deepedit":
            description = "DeepEdit: all structures at once, corrected by clicks"
            return DeepEditTrainTask(labels=labels, description=description, options=clicks, conf=conf)
        options = Options(max_epochs=0).over(conf)
        return BasicTrainTask(labels=labels, description="Automatic segmentation", options=options, conf=conf)

    def make_task(self, version: ModelVersion) -> InferTask:
        """The task of a version, built from its card.

        Raises:
            NotFound: If the app has no such model.
        """
        if version.name not in TASKS:
            raise NotFound(f"no model {version.name!r}; there are: {', '.join(TASKS)}")
        if version.card["network"].get("name") == Promptable.__name__:
            return PromptableTask.from_version(version)
        return TASKS[version.name].from_version(version)


def pipeline(networks: Mapping[str, InferTask]) -> dict[str, InferTask]:
    """The DeepGrow pipeline of the 2D and the 3D model, if both are served."""
    flat, solid = (networks.get(name) for name in ANY_STRUCTURE)
    if not isinstance(flat, DeepGrow2DTask) or not isinstance(solid, DeepGrow3DTask):
        return {}
    description = "DeepGrow: the 2D model segments slices, the 3D model the volume"
    return {"deepgrow_pipeline": DeepGrowPipelineTask(model_2d=flat, model_3d=solid, description=description)}


def slices(networks: Mapping[str, InferTask]) -> dict[str, InferTask]:
    """DeepGrow 2D by the network of `deepgrow_3d`, if that is a promptable network; used until `deepgrow_2d` has one of
    its own.
    """
    solid = networks.get("deepgrow_3d")
    if not isinstance(solid, PromptableTask):
        return {}
    description = "DeepGrow 2D: any structure on one slice, from the first click"
    return {"deepgrow_2d": PromptableSliceTask(solid, "deepgrow_2d", description)}


def scribbles(networks: Mapping[str, InferTask]) -> dict[str, InferTask]:
    """The scribble methods by name: those without weights, and one for each network. 3D Slicer's panel shows the
    names.
    """
    tasks: dict[str, InferTask] = {
        name: ScribblesTask(fit=fit, description=f"Scribbles: appearance model by {by}, boundaries by graph cut")
        for name, (fit, by) in ONLINE.items()
    }
    tasks["ClosedCurves+GraphCut"] = ClosedCurvesTask(
        fit=likelihood.forest, description="Closed curves or painted slices, interpolated to a volume"
    )
    for name, network in networks.items():
        if name in REFINED and isinstance(network, SegmentationTask):
            tasks[REFINED[name]] = RefinementTask(
                network=network, description=f"Scribbles that refine the mask of {name}"
            )
    return tasks


def _fits(card: Mapping[str, Any], settings: Settings) -> bool:
    """True if the card's labels, in the order of values, are those of `--labels`, or `--labels` is not given."""
    labels = {value: name for name, value in card["labels"].items() if value}
    return not settings.labels or tuple(labels[value] for value in sorted(labels)) == settings.labels


def _other_labels(version: ModelVersion, settings: Settings) -> str:
    """The reason why a version is not served with the server's labels."""
    own = ", ".join(name for name, value in version.card["labels"].items() if value)
    return (
        f"{version.version} in production was trained for {own}, and --labels are {', '.join(settings.labels)}: train "
        "it again, or start with its labels"
    )
