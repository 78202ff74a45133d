"""The ScoringMethod seam, and the methods that every app has: `tta`, `epistemic`, `dice`, `sum`.

A method scores one image at a time, in whichever process the pool runs it; what it answers is small, and recorded by
the pool's owner. Only the methods that ask a model need torch, and load it when they do.
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

    from rayapp.active_learning.uncertainty import Measures, NetworkInput, Sampled

SAMPLED = ("segmentation", "deepedit")
"""Types of models that say something of an image that nobody has clicked on."""
WORST = 5
"""Slices along each axis that the image's info names."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its labels by tag, read when asked for; no file may take more than `max_bytes` in memory."""

    image: ImageRecord
    labels: Mapping[str, LabelRecord]
    max_bytes: int

    def volume(self) -> Volume:
        """The image."""
        return read_volume(self.image.path, max_bytes=self.max_bytes)

    def label(self, tag: str) -> npt.NDArray[Any] | None:
        """The label map under the tag, (I, J, K); None if there is none."""
        record = self.labels.get(tag)
        return None if record is None else read_segmentation(record.path, max_bytes=self.max_bytes).array


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a method says of an image.

    `values` are the scores by name that strategies choose by, `feature` what the image looks like; `info` goes into the
    image's info and `label_infos` into those of its labels, by tag; `columns` are for the table of results
    (`rayapp.active_learning.score_files`); `uncertainty` is a map on the image's grid.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    feature: tuple[float, ...] | None = None
    info: Info = field(default_factory=dict)
    label_infos: Mapping[str, Info] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: Segmentation | None = None


class ScoringMethod(Protocol):
    """Scores images, one at a time."""

    @property
    def description(self) -> str:
        """What `/info/` says of it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its options with their defaults; the first of a list is the default."""

    @property
    def images(self) -> Labelled:
        """Which images it scores unless the request says otherwise."""

    @property
    def asks_model(self) -> bool:
        """Whether it needs a model: then an image that was scored with a version is not scored again."""

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:
        """Score an image; None if there is nothing to score. `task` is loaded, and None for a method that asks none.

        Raises:
            BadRequest: for an image or options that it cannot do anything with.
        """


def options_of(method: ScoringMethod, request: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, those of the request over the defaults. Raises BadRequest for one of another kind."""
    options: dict[str, Any] = {}
    for name, default in method.config.items():
        choices = default if isinstance(default, list) else None
        first = choices[0] if choices else default
        value = request.get(name, first)
        try:
            value = parse_flag(value, name) if isinstance(first, bool) else type(first)(value)
        except (TypeError, ValueError):
            raise BadRequest(f"option {name!r} must be like {first!r}, not {str(value)[:60]!r}") from None
        if choices and value not in choices:
            raise BadRequest(f"option {name!r} must be one of {', '.join(map(str, choices))}")
        options[name] = value
    return options


def model_of(request: Mapping[str, Any], infers: Mapping[str, InferTask]) -> str:
    """The model that a request means: the one it names, or the first that can be sampled. Raises BadRequest."""
    able = sampled_models(infers)
    named = request.get("model")
    if named in able:
        return str(named)
    if named is not None and named in infers:
        raise BadRequest(f"model {named!r} says nothing without a click; choose one of {', '.join(able) or 'none'}")
    if not able:
        raise BadRequest("no model serves that could be asked: train segmentation or deepedit first")
    return able[0]


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """A request as it will be carried out: the method's options, and the model and version that it asks, if any."""

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
    """What a request comes to with an app's methods, models and the versions that serve.

    Raises:
        NotFound: for a method that is not there.
        BadRequest: for options that are of no use, or if no model could be asked.
    """
    method = methods.get(name)
    if method is None:
        raise NotFound(f"no scoring method {name!r}; there are: {', '.join(methods) or 'none'}")
    options = options_of(method, request)
    if not method.asks_model:
        return ScoringPlan(options=options, images=method.images)
    # Clients put the method's own name under `model`.
    asked = {key: value for key, value in request.items() if key != "model" or value != name}
    model = model_of(asked, infers)
    return ScoringPlan(options=options, images=method.images, model=model, version=serving.get(model))


def sampled_models(infers: Mapping[str, InferTask]) -> list[str]:
    """Names of the models that can be sampled."""
    return [name for name, task in infers.items() if task.info.type in SAMPLED and hasattr(task, "network_input")]


class _Sampling:
    """Scores by how much samples of a model's answer differ."""

    name: str
    description: str
    config: Mapping[str, Any]
    images: Labelled = "unlabeled"
    asks_model = True

    def _samples(
        self, task: Sampled, network_input: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:  # pragma: no cover
        raise NotImplementedError

    def _value(self, measures: Measures) -> float | None:
        return measures.entropy

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:
        """See `ScoringMethod`. The samples are the same each time, by the image's id."""
        from rayapp.active_learning import uncertainty as u

        if options["samples"] < 1:
            raise BadRequest("option 'samples' must be at least 1")
        sampled: Any = task
        volume = case.volume()
        network_input: NetworkInput = sampled.network_input(volume)
        seed = zlib.crc32(case.image.id.encode())
        moments = u.measured(self._samples(sampled, network_input, options, seed), network_input)
        levels = u.uncertain_levels(moments, network_input)
        sums = u.slice_sums(levels)
        whole = moments.image()
        names = {name: value for name, value in sampled.info.labels.items() if value}
        parts = {name: moments.structure(value) for name, value in names.items()}
        voxel = network_input.millilitres(volume)
        value = self._value(whole)
        if value is None:  # nothing was found anywhere
            value = float(moments.entropy.mean())
        worst = {axis: u.worst_slices(along, WORST) for axis, along in zip("ijk", sums, strict=True)}
        entropies = {CLASS_ENTROPY + name: part.entropy for name, part in parts.items() if part.entropy is not None}
        return Score(
            values={self.name: value, FOREGROUND: whole.voxels * voxel, **entropies},
            feature=tuple(float(x) for x in u.descriptor(network_input.image)),
            info={
                f"{self.name}_entropy": whole.entropy if whole.entropy is not None else value,
                f"{self.name}_mutual_information": whole.mutual_information,
                f"{self.name}_slices": worst,
                f"{self.name}_ts": int(time.time()),
            },
            columns={
                "score": value,
                "samples": moments.count,
                **_columns(whole, voxel),
                "structures": [{"name": name, **_columns(part, voxel)} for name, part in parts.items()],
                **{f"slices_{axis}": along for axis, along in zip("ijk", sums, strict=True)},
            },
            uncertainty=Segmentation(array=levels, affine=volume.affine),
        )


class TestTime(_Sampling):
    """Aleatoric: the image in several views."""

    __test__ = False  # no test class, whatever its name

    name = TTA
    description = "Uncertainty over views of the same image (test-time augmentation, aleatoric)"
    config: Mapping[str, Any] = {"samples": 8, "spatial": ["mirror", "none", "flips", "all"], "batch": 1}

    def _samples(
        self, task: Sampled, network_input: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:
        from rayapp.active_learning.uncertainty import augmented
        from rayapp.active_learning.views import Spatial, views
        from rayapp.training.augmentation import has_sides

        spatial = Spatial(options["spatial"])
        if spatial is Spatial.MIRROR and has_sides(task.info.labels):
            spatial = Spatial.NONE
        shown = views(
            options["samples"], network_input.image.shape[1:], spatial=spatial, seed=seed, body=network_input.body
        )
        return augmented(task, network_input.image, shown, batch=options["batch"])


class Dropout(_Sampling):
    """Epistemic: several networks that one is."""

    name = EPISTEMIC
    description = "Uncertainty over networks by dropout (Monte-Carlo dropout, epistemic)"
    config: Mapping[str, Any] = {"samples": 8, "dropout": 0.1, "batch": 1}

    def _samples(
        self, task: Sampled, network_input: NetworkInput, options: Mapping[str, Any], seed: int
    ) -> Iterator[Tensor]:
        from rayapp.active_learning.uncertainty import dropped

        if not 0 < options["dropout"] < 1:
            raise BadRequest("option 'dropout' must lie between 0 and 1")
        return dropped(
            task,
            network_input.image,
            options["samples"],
            probability=options["dropout"],
            seed=seed,
            batch=options["batch"],
        )

    def _value(self, measures: Measures) -> float | None:
        return measures.mutual_information


class DiceScore:
    """How far a label is from another: by default what was submitted from what was proposed."""

    description = "Dice of the proposed label against the submitted one, over all structures"
    config: Mapping[str, Any] = {"y": FINAL, "y_pred": ORIGINAL}
    images: Labelled = "all"
    asks_model = False

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:  # noqa: ARG002
        """Voxels of the same label, twice, over those labelled in either; 1 where both are empty."""
        truth, proposed = (case.label(checked_name(options[name], name)) for name in ("y", "y_pred"))
        if truth is None or proposed is None:
            return None
        if truth.shape != proposed.shape:
            raise BadRequest("the two labels lie on different grids")
        size = np.count_nonzero(truth) + np.count_nonzero(proposed)
        dice = 2 * np.count_nonzero((truth == proposed) & (truth > 0)) / size if size else 1.0
        return Score(info={"dice": float(dice)}, columns={"score": float(dice)})


class Sum:
    """How much each label holds."""

    description = "Sum of the voxels of each label, and in how many slices it has any"
    config: Mapping[str, Any] = {}
    images: Labelled = "all"
    asks_model = False

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:  # noqa: ARG002
        """Of the labels that were submitted and proposed; slices across i, as MONAI Label counts them."""
        found: dict[str, Info] = {}
        for tag in (FINAL, ORIGINAL):
            label = case.label(tag)
            if label is not None:
                slices = int(np.count_nonzero(label.any(axis=(1, 2))))
                found[tag] = {"sum": int(label.sum(dtype=np.int64)), "slices": slices}
        if not found:
            return None
        return Score(label_infos=found, columns={"score": float(next(iter(found.values()))["sum"])})


def scoring_methods() -> dict[str, ScoringMethod]:
    """Those that every app has, by name."""
    return {TTA: TestTime(), EPISTEMIC: Dropout(), "dice": DiceScore(), "sum": Sum()}


def _columns(measures: Measures, voxel: float) -> dict[str, Any]:
    known = asdict(measures)
    return {**known, "millilitres": known.pop("voxels") * voxel}
