"""Recipe: the choices that define a training, each a method that can be overridden on its own.

These are the network's design, the loss, the optimiser and its schedule, the training examples of a case, the network's
input, and the evaluation. A recipe holds no state of a run and may serve several runs at once; `loop.Run` executes it.
`BasicTrainTask` makes a trainer of a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayapp.errors import BadRequest, RayappError
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.inference.network.network_grid import MAX_LOGITS, NetworkGrid
from rayapp.inference.network.normalisation import normalise
from rayapp.inference.network.sliding_window import Windows
from rayapp.models.store import ModelVersion
from rayapp.planner.machine import hardware
from rayapp.planner.overrides import FIELDS, Overrides
from rayapp.planner.proposal import Method, propose
from rayapp.planner.survey import cached_survey
from rayapp.training.augmentation import augmentation
from rayapp.training.cases import Case, case_of, name_of, read_pair, split
from rayapp.training.design import GRID, Design
from rayapp.training.feed import Batch
from rayapp.training.metrics import Tally, dice
from rayapp.training.options import Options
from rayapp.training.train_task import Pair
from rayapp.training.window import Example, Window

Opts = TypeVar("Opts", bound=Options)
Labels = npt.NDArray[np.uint8]
Predict = Callable[[Tensor], Tensor]
"""The network as a function: logits (N, 1 + L, …), float32, without gradient, of input (N, C, …)."""
MAX_VISITS = 4
"""Largest number of windows for which an image is read once: others come in between, or a batch is all of one image."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The predictions for a validation case, on the grid on which they are evaluated.

    Attributes:
        volume: The image.
        truth: The reference label map, (I, J, K).
        predictions: By measurement the predicted label map, (I, J, K).
        unsought: Values of the structures that were not looked for.
        name: The image's name, and if necessary the part that is evaluated.
        placed: True if the volume's affine is that of the grid; otherwise sizes in mm are unknown.
    """

    volume: Volume
    truth: Labels
    predictions: Mapping[str, Labels]
    unsought: tuple[int, ...] = ()
    name: str = ""
    placed: bool = True


class Recipe(Generic[Opts]):
    """The training of a network for automatic segmentation: every voxel gets a label, without prompts.

    Args:
        labels: Value by structure name, contiguous from 1.
        description: One line for people, about the trainer and its models.
        options: Default options, which a request may override.
        conf: The app's overrides of the planner, see `rayapp.planner.overrides`: `spacing`, `roi_size`, `network`,
            `overlap`, `precision`. A request may set the same and takes precedence.
    """

    kind = "segmentation"
    guidance_channels = 0
    """Channels of the network's input that hold guidance, after those of the image."""

    measurements: tuple[str, ...] = ("dice",)
    """Names of the measurements that `validate` and `evaluate` make."""

    whole_image = False
    """True for a network whose input is the whole image, resampled into its ROI; False for sliding windows."""

    dimensions = 3
    examples_per_case = 1
    """Training examples that a case yields each time it is visited."""

    def __init__(
        self, *, labels: Mapping[str, int], description: str, options: Opts, conf: Mapping[str, Any] | None = None
    ) -> None:
        values = sorted(labels.items(), key=lambda item: item[1])
        self.labels = {name: value for name, value in values if value}
        self.description = description
        self.options = options
        self.conf = dict(conf or {})

    # Data

    def partition(self, pairs: Sequence[Pair], options: Opts) -> tuple[list[Pair], list[Pair]]:
        """Split pairs into training and validation pairs."""
        return split(pairs, options.val_split)

    def check(self, pair: Pair) -> None:
        """Read a pair's files. Raises BadRequest if they cannot be trained with."""
        read_pair(pair, self.labels)

    def read(self, pair: Pair, design: Design) -> Case:
        """Read a pair onto the network's grid.

        Raises:
            BadRequest: If its files cannot be trained with.
        """
        volume, labels, unsought = read_pair(pair, self.labels)
        limit = design.roi_size if self.whole_image else None
        grid = NetworkGrid.fit(
            volume.shape,
            volume.affine,
            spacing_mm=design.spacing,
            limit=limit,
            divisor=design.divisor,
            max_voxels=MAX_LOGITS // (len(self.labels) + 1),
        )
        image = self.normalised(volume, pair, design, grid.from_source)
        structures = None if self.whole_image else len(self.labels)
        return case_of(image, grid.labels_from_source(labels), unsought, structures=structures)

    def normalised(
        self, volume: Volume, pair: Pair, design: Design, sample: Callable[[npt.NDArray[Any]], Floats]
    ) -> Floats:
        """An image's channels on the network's grid, normalised, (C, …).

        Args:
            volume: The image.
            pair: The pair it was read from.
            design: The network's design.
            sample: Resamples one channel onto the network's grid.

        Raises:
            BadRequest: If the image has fewer channels than the network.
        """
        if volume.channels < design.channels:
            raise BadRequest(
                f"image {name_of(pair)!r} has {volume.channels} channels, but the network takes {design.channels}: "
                "leave it out, or train with images that all have as many"
            )
        channels = volume.array[: design.channels]
        return np.stack([normalise(sample(channel), design.intensities) for channel in channels])

    def examples(self, design: Design, options: Opts) -> Callable[[Case, np.random.Generator], Sequence[Example]]:
        """A function from a case to the training examples of one visit: here one, a random window or the whole image,
        augmented."""
        window = self.window(design, turned=options.augment)
        augment = [augmentation(self.labels, dimensions=3)] if options.augment else []

        def make(case: Case, rng: np.random.Generator) -> list[Example]:
            return [example(*window.cut(case.image, case.labels, rng, places=case.places), augment, rng)]

        return make

    def window(self, design: Design, *, turned: bool) -> Window:
        """The source of windows, or of whole images, turned at random or not."""
        roi_size = None if self.whole_image else design.roi_size
        return Window(roi_size, dimensions=self.dimensions, spacing=design.spacing, turned=turned)

    def visits(self, design: Design) -> int:
        """Visits to each case in an epoch: about as many as windows cover an image, up to `MAX_VISITS`."""
        survey = design.plan.get("survey")
        if self.whole_image or not survey:
            return 1
        extent = np.array(survey["size"]) * survey["spacing"]
        return int(np.clip(np.rint((extent / design.spacing / design.roi_size).prod()), 1, MAX_VISITS))

    # Network and optimisation

    def design(self, pairs: Sequence[Pair], params: Mapping[str, Any], *, device: torch.device) -> Design:
        """The network, its grid and the plan of the training, as the planner proposes them. Called in one worker.

        A run that fine-tunes a version passes that version's `spacing`, `roi_size` and `network` as params, and trains
        from scratch if the resulting design differs from them.

        Args:
            pairs: The labelled images.
            params: The request's values; together with the app's `conf` they override the planner.
            device: The device to train on.

        Raises:
            BadRequest: If images cannot be read, or params describe no possible network.
        """
        machine = hardware()
        if device.type == "cpu":
            machine = replace(machine, gpus=())
        method = Method(
            structures=len(self.labels),
            guidance=self.guidance_channels,
            whole=self.whole_image,
            axes=self.dimensions,
            examples=self.examples_per_case,
        )
        try:
            survey = cached_survey({pair.image: pair.label for pair in pairs})
            proposal = propose(survey, machine, method, overrides=self.overrides(params))
        except RayappError as error:
            raise BadRequest(f"no network can be designed for these images: {error}") from error
        return Design.proposed(proposal, survey, labels=self.labels)

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values that replace the planner's, by name: those of the app's `conf` and, with precedence, the
        request's.

        Raises:
            BadRequest: Naming the value that is not allowed.
        """
        values = {**self.conf, **{key: value for key, value in params.items() if value is not None}}
        overrides = Overrides.of(values, axes=self.dimensions)
        if not self.options.over(params).amp:
            overrides = replace(overrides, precision="float32")
        return {key: value for key in FIELDS if (value := getattr(overrides, key)) is not None}

    def can_fine_tune(self, version: ModelVersion) -> bool:
        """True when this trainer can fine-tune a version: one with the same labels and a complete card."""
        labels = {name: value for name, value in version.card.get("labels", {}).items() if value}
        return labels == self.labels and set(GRID) <= version.card.keys()

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss, a function of logits (N, 1 + L, …) and labels (N, 1, …)."""
        from monai.losses import DiceCELoss  # takes seconds to import

        loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
            to_onehot_y=True, softmax=True, include_background=False, batch=True
        )
        return loss

    def optimizer(self, network: nn.Module, options: Opts) -> torch.optim.Optimizer:
        """The optimiser of the network's parameters."""
        return torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=1e-4, fused=True)

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        options: Opts,  # noqa: ARG002
        steps: int,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate schedule over the run's steps: linear warm-up over the first twentieth, cosine decay to
        0."""
        warm_up = max(1, steps // 20)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def inputs(
        self,
        batch: Batch,
        predict: Predict,  # noqa: ARG002
        options: Opts,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
        *,
        common: np.random.Generator,  # noqa: ARG002
    ) -> Tensor:
        """The network's input for a batch, (N, C, …).

        Args:
            batch: Images and labels.
            predict: The network as it is now.
            options: The run's options.
            rng: Source of the worker's own randomness.
            common: Source of randomness that is the same in all workers, for what decides how long a step takes:
                all wait for the slowest.
        """
        return batch.images

    # Evaluation

    def inferer(self, design: Design) -> Callable[[Tensor, Predict], Tensor]:
        """A function of images and network that predicts whole images as inference does, by sliding windows."""
        windows = Windows.of(design.card())
        return lambda images, predict: windows.run(predict, images)

    def validate(self, case: Case, predict: Predict, options: Opts) -> Iterator[Evaluation]:  # noqa: ARG002
        """Evaluate the network in training on a case, on the network's grid."""
        image = case.image.float()
        yield evaluation_of(image, case.labels, {"dice": labels_of(predict(image[None]))}, case.unsought)

    def evaluate(self, version: ModelVersion, pairs: Sequence[Pair], options: Opts) -> Iterator[Evaluation]:
        """Evaluate a version as it is served, on the images' own grids.

        Raises:
            ModelBroken: If the version cannot be loaded.
            BadRequest: If a pair cannot be read.
        """
        task = self.serve(version)
        for pair in pairs:
            volume, truth, unsought = read_pair(pair, self.labels)
            predictions = self.predict(task, volume, truth, options)
            yield Evaluation(volume=volume, truth=truth, predictions=predictions, unsought=unsought, name=name_of(pair))

    def serve(self, version: ModelVersion) -> SegmentationTask:
        """The inference task that serves a version."""
        return SegmentationTask.from_version(version)

    def predict(self, task: SegmentationTask, volume: Volume, truth: Labels, options: Opts) -> dict[str, Labels]:  # noqa: ARG002
        """The predicted label map of an image, (I, J, K), by measurement."""
        return {"dice": task.predict(task.prepare(volume), Prompts(), {}).labels}

    def tally(self, evaluations: Iterator[Evaluation]) -> Tally:
        """The Dice scores of evaluations, summed up."""
        tally = Tally(self.measurements, tuple(self.labels))
        for evaluation in evaluations:
            for measurement, predicted in evaluation.predictions.items():
                scores = dice(predicted, evaluation.truth, len(self.labels), unsought=evaluation.unsought)
                tally.add(measurement, scores)
        return tally


def seeded(transform: Any, rng: np.random.Generator) -> Any:
    """A MONAI transform, seeded from `rng`."""
    return transform.set_random_state(seed=int(rng.integers(2**31)))


def example(image: Tensor, labels: Tensor, transforms: Sequence[Any], rng: np.random.Generator) -> Example:
    """A training example: image (C, …) and labels (…) after random transforms that are seeded from `rng`."""
    from monai.utils import convert_to_tensor

    data: Any = {"image": image, "labels": labels[None]}
    for transform in transforms:
        data = seeded(transform, rng)(data)
    changed, mask = (convert_to_tensor(data[key], track_meta=False) for key in ("image", "labels"))
    return changed, mask[0].to(torch.uint8)


def evaluation_of(
    image: Tensor, truth: Tensor, predictions: Mapping[str, Labels], unsought: tuple[int, ...] = ()
) -> Evaluation:
    """An evaluation on the network's grid: image (C, …), truth and predictions (…). A slice becomes a volume of one."""
    return Evaluation(
        volume=Volume(array=np.atleast_3d(image.numpy()[0])[None], affine=np.eye(4)),
        truth=np.atleast_3d(truth.numpy()),
        predictions={measurement: np.atleast_3d(labels) for measurement, labels in predictions.items()},
        unsought=unsought,
        placed=False,
    )


def labels_of(logits: Tensor) -> Labels:
    """The label map, (…), of one image's logits, (1, 1 + L, …)."""
    labels: Labels = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels
