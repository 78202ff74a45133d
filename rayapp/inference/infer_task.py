"""The `InferTask` protocol, and the messages that go in and out of one inference.

A task is split into stages, so that a replica can overlap reading, decoding and encoding of one request with the
network of another, and can keep what does not change between two clicks:

    prepare(volume)            once per (image, model version): orient, resample, normalise
    predict(prepared, prompts) for every click: guidance, network, restoration onto the source grid

Stages are synchronous. A replica may call `prepare` from several threads at once; it calls `predict` from one thread at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Labels

Point = tuple[int, int, int]
"""A voxel index (i, j, k) of the source image."""
CurvePoint = tuple[float, float, float]
"""A place in the source image in fractional voxel indices; whole numbers are voxel centres."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Strokes and closed curves drawn for one structure.

    Attributes:
        marks: Strokes on the structure and around it, as in `Prompts.marks`.
        curves: Closed curves along the structure's outline, as in `Prompts.curves`.
    """

    marks: SparseLabels | None = None
    curves: Sequence[Sequence[CurvePoint]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", _sparse(self.marks))


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The annotator's prompts, in voxel indices of the source image.

    Attributes:
        clicks: Label name to clicked voxels; "background" for clicks off every structure, "foreground" for clicks on
            the structure of a single-structure model.
        label: Name of the structure that is being annotated.
        roi: Box of interest: inclusive lower and exclusive upper corner.
        slice: Index k of the slice that a 2D model shall segment.
        reset: True if the client asks to drop earlier prompts.
        marks: Scribbles, shape (I, J, K), values of `rayapp.inference.prompts.scribble_map`; may be given as an array,
            of which only the box around the scribbles is kept.
        curves: Closed polygons, each in one slice across any axis, in fractional voxel indices.
        start: Existing mask to be corrected instead of segmenting from scratch, shape (I, J, K). Its values are the
            model's labels. For a single-structure model 1 is that structure, and voxels of any other value belong to
            other structures, which the model leaves as they are.
        extremes: Structure name to its outermost points along i, j and k.
        drawings: Structure name to its strokes and curves, in place of `marks` and `curves` for multi-structure models.
        sizes: Which alternative answer is wanted (1: the next larger than the likeliest, -1: the next smaller, …), by
            the number of clicks on the structure at the time of that choice.
        turns: For a model with `info.ordered`, the prompts of an interaction one by one, in the order in which they
            were made. A mask to start from is in `start` only.
    """

    clicks: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    label: str | None = None
    roi: tuple[Point, Point] | None = None
    slice: int | None = None
    reset: bool = False
    marks: SparseLabels | None = None
    curves: Sequence[Sequence[CurvePoint]] = ()
    start: Labels | None = None
    extremes: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    turns: Sequence[Prompts] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", _sparse(self.marks))

    @property
    def empty(self) -> bool:
        """True if there are no clicks, drawings or mask to start from; a box, a label or a slice alone do not count."""
        masks = self.marks is not None or self.start is not None
        return not (masks or self.clicks or self.curves or self.extremes or self.drawings)


def _sparse(marks: SparseLabels | Labels | None) -> SparseLabels | None:
    return SparseLabels.of(marks) if isinstance(marks, np.ndarray) else marks


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer.

    Attributes:
        labels: Label map on the source grid, shape (I, J, K), values as in the task's `labels`.
        params: Additional keys for the reply's `params`.
        seconds: Time spent by stage, e.g. {"infer": 0.1, "invert": 0.01}.
        document: JSON that is sent in place of the mask, for results that are no mask (e.g. detected boxes).
    """

    labels: Labels
    params: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    document: bytes | None = None


def label_params(prompts: Prompts) -> dict[str, Any]:
    """`Prediction.params` for a mask of the one structure that the prompts name: its name, with value 1."""
    return {"label_names": {prompts.label: 1}} if prompts.label else {}


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A model's entry in `/info/`.

    Attributes:
        type: The kind of model, as clients know it: segmentation, deepedit, deepgrow, scribbles, …
        labels: Label name to value, contiguous from 1 (0 is background); empty for a model that segments whatever
            structure the prompts are on.
        dimension: 3 for volumes, 2 for single slices.
        description: One sentence for the annotator.
        config: Options that a request may set, by name, with their default or their choices.
        version: The model version's name; empty for methods without weights.
        drawings: True for a model other than scribbles methods that takes strokes and curves as they are.
        ordered: True for a model whose answer depends on the order of the prompts; it gets `Prompts.turns`.
    """

    type: str
    labels: Mapping[str, int]
    dimension: int
    description: str
    config: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    drawings: bool = False
    ordered: bool = False

    @property
    def structures(self) -> dict[str, int]:
        """`labels` without background."""
        return {name: value for name, value in self.labels.items() if value}

    @property
    def takes_drawings(self) -> bool:
        """True if the model uses strokes and curves directly, so that they need not be lowered to clicks."""
        return self.drawings or self.type == "scribbles"


class Prepared(Protocol):
    """A preprocessed image. Opaque to the replica except for its size."""

    @property
    def nbytes(self) -> int:
        """Memory it holds in bytes, counted against the replica's cache."""


class InferTask(Protocol):
    """A model that an app serves.

    A task may also define `needs_network(prepared) -> bool`. While that is False for an image, `predict` runs no
    network for it: the replica then calls `predict` from several threads at once, concurrently with other networks.
    """

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`. Cheap; available before the weights are loaded."""

    @property
    def version(self) -> str:
        """The model version that the next `predict` uses."""

    def load(self) -> None:
        """Load the weights; later calls do nothing.

        Raises:
            ModelBroken: If the weights cannot be loaded; names the file.
        """

    def prepare(self, volume: Volume) -> Prepared:
        """Compute what depends on the image alone."""

    def predict(self, prepared: Any, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment a prepared image for these prompts.

        Args:
            prepared: What `prepare` returned for the image.
            prompts: The prompts, in voxel indices of the source image.
            config: The request's values for the options in `info.config`.
        """


@runtime_checkable
class StagedTask(InferTask, Protocol):
    """A model with a coarse answer first and better ones after it."""

    def stages(self, prepared: Any, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Yield one or more predictions, each better than the one before; `predict` returns one of them.

        Computation is lazy: each prediction is computed when it is asked for, on the thread that runs networks, and a
        caller that needs no better one stops iterating. A prediction's `seconds` are cumulative.
        """


def runs_network(task: InferTask, prepared: Any) -> bool:
    """True if `predict` runs a network for this image; see `InferTask`."""
    needs_network = getattr(task, "needs_network", None)
    return needs_network is None or bool(needs_network(prepared))
