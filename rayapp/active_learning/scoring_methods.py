"""The ScoringMethod protocol, and the methods that every app has: `tta`, `epistemic`, `dice`, `sum`.

A method scores one image at a time, in any worker process; the scoring job records the results. Only methods that need
a model import torch, and only when they score.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rayapp.active_learning.strategies import CLASS_ENTROPY, EPISTEMIC, FOREGROUND, TTA
from rayapp.datastore.interfaces import ImageRecord, Info, Labelled, LabelRecord
from rayapp.errors import BadRequest, NotFound
from rayapp.imaging.reader import read_segmentation, read_volume
from rayapp.imaging.volume import Segmentation, Volume
from rayapp.inference.infer_task import InferTask
from rayapp.protocol import FINAL, ORIGINAL, checked_name, parse_flag

if TYPE_CHECKING:
    from torch import Tensor

    from rayapp.active_learning.uncertainty import Measures, NetworkInput, SamplableTask

SAMPLED = ("segmentation", "deepedit")
"""Types of models that predict without prompts, so that images can be scored by them."""
LISTED_SLICES = 5
"""Number of most uncertain slices along each axis that the image's info lists."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image with its labels, read on demand.

    Attributes:
        image: Record of the image.
        labels: Records of the image's labels by tag.
        max_bytes: Largest decoded file, in bytes.
    """

    image: ImageRecord
    labels: Mapping[str, LabelRecord]
    max_bytes: int

    def volume(self) -> Volume:
        """Read the image."""
        return read_volume(self.image.path, max_bytes=self.max_bytes)

    def label(self, tag: str) -> npt.NDArray[Any] | None:
        """Read the label map under a tag, (I, J, K); None if there is none."""
        record = self.labels.get(tag)
        return None if record is None else read_segmentation(record.path, max_bytes=self.max_bytes).array


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of scoring an image.

    Attributes:
        values: Scores by name, which strategies choose by.
        feature: A feature vector of the image, which `diverse` compares images by.
        info: Fields to merge into the image's info.
        label_infos: Fields to merge into the info of the image's labels, by tag.
        columns: The image's row in the table of results, see `rayapp.active_learning.score_files`.
        uncertainty: Uncertainty map on the image's voxel grid, uint8.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    feature: tuple[float, ...] | None = None
    info: Info = field(default_factory=dict)
    label_infos: Mapping[str, Info] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: Segmentation | None = None


class ScoringMethod(Protocol):
    """A method that scores images, one at a time."""

    @property
    def description(self) -> str:
        """One line for people, which `/info/` shows."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The options with their defaults; of a list of choices the first is the default."""

    @property
    def images(self) -> Labelled:
        """The images to score by default: `unlabeled`, `labeled` or `all`."""

    @property
    def needs_model(self) -> bool:
        """True for a method that scores with a model. It scores an image once with each version of the model."""

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:
        """Score an image.

        Args:
            case: The image and its labels.
            options: The values of `config`.
            task: The model, loaded; None for a method that needs none.

        Returns:
            The score, or None if there is nothing to score.

        Raises:
            BadRequest: If the image or the options do not suit the method.
        """


def options_of(method: ScoringMethod, request: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options: the request's values, and defaults for the others.

    Raises:
        BadRequest: Naming the option whose value has another type or is none of the choices.
    """
    options: dict[str, Any] = {}
    for name, default in method.config.items():
        choices = default if isinstance(default, list) else None
        first = choices[0] if choices else default
        value = request.get(name, first)
        try:
            value = parse_flag(value, name) if isinstance(first, bool) else type(first)(value)
        except (TypeError, ValueError):
            raise BadRequest(f"option {name!r} must be of the type of {first!r}, not {str(value)[:60]!r}") from None
        if choices and value not in choices:
            raise BadRequest(f"option {name!r} must be one of {', '.join(map(str, choices))}, not {str(value)[:60]!r}")
        options[name] = value
    return options


def model_of(request: Mapping[str, Any], infers: Mapping[str, InferTask]) -> str:
    """The model to score with: the one that a request names, or else the first that can score images.

    Raises:
        BadRequest: If the named model cannot score images, or none can.
    """
    usable = scoring_models(infers)
    name = request.get("model")
    if name in usable:
        return str(name)
    if name is not None and name in infers:
        others = f"use one of {', '.join(usable)}" if usable else "train segmentation or deepedit first"
        raise BadRequest(f"model {name!r} needs prompts and cannot score images: {others}")
    if not usable:
        raise BadRequest("no model that can score images is in production: train segmentation or deepedit first")
    return usable[0]


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """A scoring request, resolved.

    Attributes:
        options: All options of the method.
        images: The images that the method scores by default.
        model: The model to score with; None for a method that needs none.
        version: Version of that model.
    """

    options: Mapping[str, Any]
    images: Labelled
    model: str | None = None
    version: str | None = None


def plan_of(
    name: str,
    request: Mapping[str, Any],
    *,
    methods: Mapping[str, ScoringMethod],
    infers: Mapping[str, InferTask],
    serving: Mapping[str, str | None],
) -> ScoringPlan:
    """Resolve a scoring request.

    Args:
        name: Name of the scoring method.
        request: The request's options.
        methods: The app's scoring methods by name.
        infers: The app's inference tasks by name.
        serving: The version in production of each model.

    Raises:
        NotFound: If there is no such method.
        BadRequest: For options that are not allowed, or if no model can score images.
    """
    method = methods.get(name)
    if method is None:
        raise NotFound(f"no scoring method {name!r}; there are: {', '.join(methods) or 'none'}")
    options = options_of(method, request)
    if not method.needs_model:
        return ScoringPlan(options=options, images=method.images)
    # MONAI Label's clients send the method's own name as `model`.
    named = {key: value for key, value in request.items() if key != "model" or value != name}
    model = model_of(named, infers)
    return ScoringPlan(options=options, images=method.images, model=model, version=serving.get(model))


def scoring_models(infers: Mapping[str, InferTask]) -> list[str]:
    """Names of the models that can score images."""
    return [name for name, task in infers.items() if task.info.type in SAMPLED and hasattr(task, "network_input")]


class _UncertaintyMethod:
    """Base of methods that score an image by the uncertainty over samples of a model's predictions."""

    name: str
    description: str
    config: Mapping[str, Any]
    images: Labelled = "unlabeled"
    needs_model = True

    def _samples(
        self, task: SamplableTask, image: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:  # pragma: no cover
        """Samples of the predicted probabilities, each (1 + L, *shape)."""
        raise NotImplementedError

    def _value(self, measures: Measures) -> float | None:
        return measures.entropy

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:
        """See `ScoringMethod.score`. The samples' seed depends on the image's id alone, so scores are reproducible."""
        from rayapp.active_learning import uncertainty as u

        if options["samples"] < 1:
            raise BadRequest(f"option 'samples' must be at least 1, not {options['samples']}")
        model: Any = task
        volume = case.volume()
        image: NetworkInput = model.network_input(volume)
        seed = zlib.crc32(case.image.id.encode())
        moments = u.moments_of(self._samples(model, image, options, seed), image)
        levels = u.uncertainty_levels(moments, image)
        sums = u.slice_sums(levels)
        overall = moments.image()
        names = {name: value for name, value in model.info.labels.items() if value}
        structures = {name: moments.structure(value) for name, value in names.items()}
        voxel = image.millilitres(volume)
        value = self._value(overall)
        if value is None:  # no structure was predicted anywhere
            value = float(moments.entropy.mean())
        slices = {axis: u.most_uncertain_slices(along, LISTED_SLICES) for axis, along in zip("ijk", sums, strict=True)}
        entropies = {
            CLASS_ENTROPY + name: measures.entropy
            for name, measures in structures.items()
            if measures.entropy is not None
        }
        return Score(
            values={self.name: value, FOREGROUND: overall.voxels * voxel, **entropies},
            feature=tuple(float(x) for x in u.descriptor(image.image)),
            info={
                f"{self.name}_entropy": overall.entropy if overall.entropy is not None else value,
                f"{self.name}_mutual_information": overall.mutual_information,
                f"{self.name}_slices": slices,
                f"{self.name}_ts": int(time.time()),
            },
            columns={
                "score": value,
                "samples": moments.count,
                **_columns(overall, voxel),
                "structures": [{"name": name, **_columns(part, voxel)} for name, part in structures.items()],
                **{f"slices_{axis}": along for axis, along in zip("ijk", sums, strict=True)},
            },
            uncertainty=Segmentation(array=levels, affine=volume.affine),
        )


class TestTimeAugmentation(_UncertaintyMethod):
    """Test-time augmentation: aleatoric uncertainty (Wang et al., 2019)."""

    __test__ = False  # keeps pytest from collecting it as a test

    name = TTA
    description = "Uncertainty by test-time augmentation (aleatoric)"
    config: Mapping[str, Any] = {"samples": 8, "spatial": ["mirror", "none", "flips", "all"], "batch": 1}

    def _samples(
        self, task: SamplableTask, image: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:
        from rayapp.active_learning.uncertainty import sample_views
        from rayapp.active_learning.views import Spatial, random_views
        from rayapp.training.augmentation import has_sides

        spatial = Spatial(options["spatial"])
        if spatial is Spatial.MIRROR and has_sides(task.info.labels):
            spatial = Spatial.NONE
        views = random_views(options["samples"], image.image.shape[1:], spatial=spatial, seed=seed, body=image.body)
        return sample_views(task, image.image, views, batch=options["batch"])


class MonteCarloDropout(_UncertaintyMethod):
    """Monte Carlo dropout: epistemic uncertainty (Gal and Ghahramani, 2016)."""

    name = EPISTEMIC
    description = "Uncertainty by Monte Carlo dropout (epistemic)"
    config: Mapping[str, Any] = {"samples": 8, "dropout": 0.1, "batch": 1}

    def _samples(
        self, task: SamplableTask, image: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:
        from rayapp.active_learning.uncertainty import sample_dropout

        if not 0 < options["dropout"] < 1:
            raise BadRequest(f"option 'dropout' must lie between 0 and 1, not {options['dropout']}")
        return sample_dropout(
            task, image.image, options["samples"], probability=options["dropout"], seed=seed, batch=options["batch"]
        )

    def _value(self, measures: Measures) -> float | None:
        return measures.mutual_information


class DiceScore:
    """Dice score between two labels of an image, by default between the saved and the proposed one."""

    description = "Dice score of the proposed label against the saved one, over all structures"
    config: Mapping[str, Any] = {"y": FINAL, "y_pred": ORIGINAL}
    images: Labelled = "all"
    needs_model = False

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:  # noqa: ARG002
        """Twice the number of voxels with the same structure in both labels, over the number of labelled voxels of
        both; 1 if both are empty."""
        truth, proposed = (case.label(checked_name(options[name], name)) for name in ("y", "y_pred"))
        if truth is None or proposed is None:
            return None
        if truth.shape != proposed.shape:
            raise BadRequest(
                f"labels {options['y']!r} and {options['y_pred']!r} have different shapes, {truth.shape} and "
                f"{proposed.shape}: save them on the same voxel grid"
            )
        size = np.count_nonzero(truth) + np.count_nonzero(proposed)
        dice = 2 * np.count_nonzero((truth == proposed) & (truth > 0)) / size if size else 1.0
        return Score(info={"dice": float(dice)}, columns={"score": float(dice)})


class Sum:
    """Size of an image's labels, as MONAI Label's scoring method of this name computes it."""

    description = "Sum of the voxel values of each label, and its number of labelled slices"
    config: Mapping[str, Any] = {}
    images: Labelled = "all"
    needs_model = False

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:  # noqa: ARG002
        """Sum and slices of the saved and of the proposed label; slices are counted across i, as MONAI Label does."""
        sizes: dict[str, Info] = {}
        for tag in (FINAL, ORIGINAL):
            label = case.label(tag)
            if label is not None:
                slices = int(np.count_nonzero(label.any(axis=(1, 2))))
                sizes[tag] = {"sum": int(label.sum(dtype=np.int64)), "slices": slices}
        if not sizes:
            return None
        return Score(label_infos=sizes, columns={"score": float(next(iter(sizes.values()))["sum"])})


def scoring_methods() -> dict[str, ScoringMethod]:
    """The scoring methods that every app has, by name."""
    return {TTA: TestTimeAugmentation(), EPISTEMIC: MonteCarloDropout(), "dice": DiceScore(), "sum": Sum()}


def _columns(measures: Measures, voxel: float) -> dict[str, Any]:
    """Columns of the table of results; `voxel` is the volume of a voxel in millilitres."""
    columns = asdict(measures)
    return {**columns, "millilitres": columns.pop("voxels") * voxel}
