"""Recipe: the choices that make up a training, each a method that may be overridden alone.

The network's design, the loss, the optimiser and its schedule, what is learnt from a case, what the network is shown,
and how well it does. A recipe holds no state of a run, and several runs may use one at once: `loop.Run` does the work
and asks it. `BasicTrainTask` makes a trainer of a recipe.
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
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.network.normalisation import normalise
from rayapp.inference.network.sliding_window import Windows
from rayapp.models.store import ModelVersion
from rayapp.planner import Method, hardware, propose
from rayapp.planner.overrides import FIELDS, Overrides
from rayapp.planner.survey import cached_survey
from rayapp.training.augmentation import augmentation, window
from rayapp.training.cases import Case, case_of, name_of, read_pair, split
from rayapp.training.design import GRID, Design
from rayapp.training.feed import Batch, Example
from rayapp.training.metrics import Tally, dice
from rayapp.training.options import Options
from rayapp.training.train_task import Pair

Opts = TypeVar("Opts", bound=Options)
Labels = npt.NDArray[np.uint8]
Predict = Callable[[Tensor], Tensor]
"""Logits (N, 1 + L, …), float32, for what the network is shown, (N, C, …); without gradient."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A validation case on the grid it was measured on: `found` by measurement, (I, J, K) like `truth`."""

    volume: Volume
    truth: Labels
    found: Mapping[str, Labels]


class Recipe(Generic[Opts]):
    """How a network that labels every voxel of an image is trained: automatic segmentation.

    Args:
        labels: structure name to value, contiguous from 1.
        description: of the trainer and of the models it makes.
        options: defaults of what a request may set.
        conf: the app's word in place of the planner's, as `rayapp.planner.overrides` takes it: `spacing`, `roi_size`,
            `network`, `overlap`, `precision`. A request may set the same, and comes first.
    """

    kind = "segmentation"
    guidance_channels = 0
    measurements: tuple[str, ...] = ("dice",)
    whole = False
    """Whether the network sees an image whole, scaled into its ROI, or through windows."""

    dimensions = 3
    at_a_visit = 1
    """Examples that one visit to a case gives."""

    def __init__(
        self, *, labels: Mapping[str, int], description: str, options: Opts, conf: Mapping[str, Any] | None = None
    ) -> None:
        values = sorted(labels.items(), key=lambda item: item[1])
        self.labels = {name: value for name, value in values if value}
        self.description = description
        self.options = options
        self.conf = dict(conf or {})

    # What is learnt from

    def partition(self, pairs: Sequence[Pair], options: Opts) -> tuple[list[Pair], list[Pair]]:
        """Pairs to train with and to validate with."""
        return split(pairs, options.val_split)

    def read(self, pair: Pair, design: Design) -> Case:
        """A pair on the network's grid. Raises BadRequest."""
        volume, labels = read_pair(pair, self.labels)
        limit = design.roi_size if self.whole else None
        grid = NetworkGrid.fit(
            volume.shape, volume.affine, spacing_mm=design.spacing, limit=limit, divisor=design.divisor
        )
        return case_of(self.normalised(volume, pair, design, grid.from_source), grid.labels_from_source(labels))

    def normalised(
        self, volume: Volume, pair: Pair, design: Design, sample: Callable[[npt.NDArray[Any]], Floats]
    ) -> Floats:
        """The channels that the network sees, each brought to its grid by `sample`. Raises BadRequest."""
        if volume.channels < design.channels:
            raise BadRequest(f"image {name_of(pair)!r} has {volume.channels} channels; others have {design.channels}")
        return np.stack([normalise(sample(channel)) for channel in volume.array[: design.channels]])

    def examples(self, design: Design, options: Opts) -> Callable[[Case, np.random.Generator], Sequence[Example]]:
        """What makes, of a case, the examples that one visit to it gives: here one, a window or the whole image,
        augmented."""
        cut = [] if self.whole else [window(design.roi_size, len(self.labels) + 1)]
        change = [augmentation(self.labels, dimensions=3, spacing=design.spacing)] if options.augment else []

        def make(case: Case, rng: np.random.Generator) -> list[Example]:
            return [example(case.image, case.labels, [*cut, *change], rng)]

        return make

    # What learns

    def design(self, pairs: Sequence[Pair], params: Mapping[str, Any], *, device: torch.device) -> Design:
        """The network and its grid for these images, and how to train on this device: what the planner proposes.

        Of what `params` say, or else the app's `conf`, the rest follows. A run that goes on from a version passes that
        version's `spacing`, `roi_size` and `network`, and starts afresh if the design does not take them.
        Called in one worker. Raises BadRequest for images that cannot be read or params that make no network.
        """
        found = hardware()
        if device.type == "cpu":
            found = replace(found, gpus=())
        method = Method(
            structures=len(self.labels),
            guidance=self.guidance_channels,
            whole=self.whole,
            axes=self.dimensions,
            examples=self.at_a_visit,
        )
        try:
            survey = cached_survey({pair.image: pair.label for pair in pairs})
            proposal = propose(survey, found, method, overrides=self.overrides(params))
        except RayappError as error:
            raise BadRequest(f"no design for these images: {error}") from error
        return Design.proposed(proposal, survey, labels=self.labels)

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What is not left to the planner, by name: the app's `conf`, and a request's params before that.

        Raises BadRequest.
        """
        given = {**self.conf, **{key: value for key, value in params.items() if value is not None}}
        wanted = Overrides.of(given, axes=self.dimensions)
        if not self.options.over(params).amp:
            wanted = replace(wanted, precision="float32")
        return {key: value for key in FIELDS if (value := getattr(wanted, key)) is not None}

    def continues(self, parent: ModelVersion) -> bool:
        """True when a version's weights can be trained on by this task."""
        labels = {name: value for name, value in parent.card.get("labels", {}).items() if value}
        return labels == self.labels and set(GRID) <= parent.card.keys()

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Of logits (N, 1 + L, …) and labels (N, 1, …)."""
        from monai.losses import DiceCELoss  # takes seconds to import

        loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
            to_onehot_y=True, softmax=True, include_background=False, batch=True
        )
        return loss

    def optimizer(self, network: nn.Module, options: Opts) -> torch.optim.Optimizer:
        """Over the network's parameters."""
        return torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=1e-4, fused=True)

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        options: Opts,  # noqa: ARG002
        steps: int,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Stepped after each of a run's `steps`: a warm-up over a twentieth of them, then half a cosine down to 0."""
        warm = max(1, steps // 20)

        def share(step: int) -> float:
            return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, share)

    def inputs(self, batch: Batch, predict: Predict, options: Opts, rng: np.random.Generator) -> Tensor:  # noqa: ARG002
        """What the network is shown of a batch."""
        return batch.images

    # How well it does

    def inferer(self, design: Design) -> Callable[[Tensor, Predict], Tensor]:
        """Runs the network over whole images, as inference does."""
        windows = Windows.of(design.card())
        return lambda images, predict: windows.run(predict, images)

    def validate(self, case: Case, predict: Predict, options: Opts) -> Iterator[Answer]:  # noqa: ARG002
        """What the network finds in a case, on the network's grid."""
        image = case.image.float()
        yield answer_of(image, case.labels, {"dice": labels_of(predict(image[None]))})

    def answers(self, version: ModelVersion, pairs: Sequence[Pair], options: Opts) -> Iterator[Answer]:
        """What a version answers when it serves, on the images' own grids. Raises ModelBroken, BadRequest."""
        task = self.serve(version)
        for pair in pairs:
            volume, truth = read_pair(pair, self.labels)
            yield Answer(volume=volume, truth=truth, found=self.ask(task, volume, truth, options))

    def serve(self, version: ModelVersion) -> SegmentationTask:
        """The inference task of this kind of model."""
        return SegmentationTask.from_version(version)

    def ask(self, task: SegmentationTask, volume: Volume, truth: Labels, options: Opts) -> dict[str, Labels]:  # noqa: ARG002
        """One image's labels, by measurement."""
        return {"dice": task.predict(task.prepare(volume), Prompts(), {}).labels}

    def tally(self, answers: Iterator[Answer]) -> Tally:
        """Dice over answers."""
        tally = Tally(self.measurements, tuple(self.labels))
        for answer in answers:
            for measurement, found in answer.found.items():
                tally.add(measurement, dice(found, answer.truth, len(self.labels)))
        return tally


def seeded(transform: Any, rng: np.random.Generator) -> Any:
    """A MONAI transform whose next draws follow from `rng`."""
    return transform.set_random_state(seed=int(rng.integers(2**31)))


def example(image: Tensor, labels: Tensor, transforms: Sequence[Any], rng: np.random.Generator) -> Example:
    """What random transforms make of an image and its labels."""
    from monai.utils import convert_to_tensor

    data: Any = {"image": image.float(), "labels": labels[None]}
    for transform in transforms:
        data = seeded(transform, rng)(data)
        (data,) = data if isinstance(data, list) else [data]  # cropping transforms make lists
    changed, mask = (convert_to_tensor(data[key], track_meta=False) for key in ("image", "labels"))
    return changed, mask[0].to(torch.uint8)


def answer_of(image: Tensor, truth: Tensor, found: Mapping[str, Labels]) -> Answer:
    """An answer on the network's grid; a slice becomes a volume of one."""
    return Answer(
        volume=Volume(array=np.atleast_3d(image.numpy()[0])[None], affine=np.eye(4)),
        truth=np.atleast_3d(truth.numpy()),
        found={measurement: np.atleast_3d(labels) for measurement, labels in found.items()},
    )


def labels_of(logits: Tensor) -> Labels:
    """The labels, (…), of one image's logits, (1, 1 + L, …)."""
    labels: Labels = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels
