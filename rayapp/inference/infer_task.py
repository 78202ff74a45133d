"""The InferTask seam: what a model answers to, and the messages of one inference.

A task is split into stages so that a replica can run disk work, decoding and encoding of one request beside the
network of another, and can keep what does not change between two clicks:

    prepare(volume)            once per (image, model version): orient, resample, normalise
    predict(prepared, prompts) every click: guidance, network, restore onto the source grid

Stages are synchronous; a replica calls `prepare` from several threads at once and `predict` from one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rayapp.imaging.volume import Volume

Point = tuple[int, int, int]
"""A voxel index (i, j, k) of the source image."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Strokes on one structure and around it, and closed curves along its outline, as in `Prompts`."""

    marks: npt.NDArray[np.uint8] | None = None
    curves: Sequence[Sequence[Point]] = ()


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the annotator pointed at, in voxel indices of the source image.

    `clicks` maps a label name (or "background", or "foreground" for single-structure models) to its points. `marks`
    are scribbles as `rayapp.inference.prompts.scribble_map` makes them of an uploaded label map. Each of `curves` is a
    closed polygon on one slice, along whichever axis. `start` is a mask that exists already, to be corrected and
    not found anew: its values are the model's labels; for a model of one structure 1 is that structure, and voxels of
    any other value belong to others, which it leaves alone. `extremes` are a structure's outermost points along i, j
    and k, by name. `drawings` take the place of `marks` and `curves` for models of several structures, by name.
    """

    clicks: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    label: str | None = None
    roi: tuple[Point, Point] | None = None  # inclusive lower, exclusive upper corner
    slice: int | None = None
    reset: bool = False
    marks: npt.NDArray[np.uint8] | None = None  # of the source image's shape
    curves: Sequence[Sequence[Point]] = ()
    start: npt.NDArray[np.uint8] | None = None  # of the source image's shape
    extremes: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    drawings: Mapping[str, Drawing] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """True where nothing was pointed at or drawn; a box, a label or a slice alone point at nothing."""
        masks = self.marks is not None or self.start is not None
        return not (masks or self.clicks or self.curves or self.extremes or self.drawings)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model found. `document`, where there is one, is sent in the mask's place: JSON of what is no mask.

    `labels` has the source image's shape (I, J, K), uint8, values as in the task's `labels`."""

    labels: npt.NDArray[np.uint8]
    params: Mapping[str, Any] = field(default_factory=dict)  # more keys for the reply's `params`
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> time, e.g. {"infer": 0.1, "invert": 0.01}
    document: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A model as `/info/` lists it. `labels` maps name to value, contiguous from 1 (0 is background)."""

    type: str  # segmentation | deepedit | deepgrow | scribbles | …
    labels: Mapping[str, int]
    dimension: int
    description: str
    config: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def structures(self) -> dict[str, int]:
        """`labels` without background; none for a model of whatever is pointed at."""
        return {name: value for name, value in self.labels.items() if value}

    @property
    def draws(self) -> bool:
        """True where the model itself knows what to make of strokes and curves."""
        return self.type == "scribbles"


class Prepared(Protocol):
    """A preprocessed image, opaque to the replica but for its size."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds, for the cache's bound."""


class InferTask(Protocol):
    """One model an app serves.

    One that needs no network for an image (any more) may say so: where its `needs_network(prepared)` is False,
    `predict` is called from several threads at once, beside the networks.
    """

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows; cheap, needs no weights."""

    @property
    def version(self) -> str:
        """The model version the next `predict` uses."""

    def load(self) -> None:
        """Load the weights, once; later calls do nothing. Raises ModelBroken naming the file."""

    def prepare(self, volume: Volume) -> Prepared:
        """Everything that depends on the image alone."""

    def predict(self, prepared: Any, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Run the network for these prompts. `config` holds the request's values of `info.config`."""


@runtime_checkable
class StagedTask(InferTask, Protocol):
    """A model that can answer in stages: soon and roughly first, then better."""

    def stages(self, prepared: Any, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """One or more answers to these prompts, each better than the one before; `predict` gives one of them.

        The work is done as answers are asked for, each on the thread that runs networks; whoever needs no better one
        just stops asking. A prediction's `seconds` are all that was spent up to it.
        """


def runs_network(task: InferTask, prepared: Any) -> bool:
    """False for a task that says so: see `InferTask`."""
    says = getattr(task, "needs_network", None)
    return says is None or bool(says(prepared))
