"""What the server answers, typed: the JSON of each route, and InferResult."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.protocol import MASK_MEDIA_TYPE

MAX_LABELS = 4 << 30
"""Bytes that a decoded label map may have."""


class JobKind(StrEnum):
    """What runs in the background, as its path names it."""

    TRAIN = "train"
    SCORING = "scoring"
    BATCH = "batch/infer"


class ModelInfo(TypedDict):
    """A model that `/info/` lists; `labels` maps name to value."""

    type: str
    labels: dict[str, int]
    dimension: int
    description: str
    config: dict[str, Any]
    version: str


class DatastoreStatus(TypedDict):
    """How many images there are, how many have a `final` label, and how many labels each tag holds."""

    total: int
    completed: int
    label_tags: dict[str, int]


class Info(TypedDict):
    """What the server serves."""

    name: str
    description: str
    version: str
    labels: list[str]
    models: dict[str, ModelInfo]
    trainers: dict[str, dict[str, Any]]
    strategies: dict[str, dict[str, Any]]
    scoring: dict[str, dict[str, Any]]
    train_stats: dict[str, dict[str, Any]]
    datastore: DatastoreStatus


class _Sample(TypedDict):
    id: str
    path: str
    name: str


class Sample(_Sample, total=False):
    """The next image to label; `path` is the server's, `name` the file name."""

    ts: int
    weight: int
    strategy: dict[str, Any]


class SavedLabel(TypedDict):
    """A label that is durably stored; both are the image's id."""

    image: str
    label: str


class Session(TypedDict):
    """An image that was sent for a while, without joining the datastore."""

    session_id: str
    session_info: dict[str, Any]


class _Job(TypedDict):
    id: str
    status: str
    request: dict[str, Any]
    start_ts: str


class Job(_Job, total=False):
    """A background job: SUBMITTED, RUNNING, DONE, ERROR or STOPPED.

    `progress` has epoch, epochs, iteration, iterations, loss, metric, best and seconds_left; `result` says what a job
    that is done made; `files` are the names of its pictures.
    """

    details: list[str]
    end_ts: str
    kind: str
    name: str
    progress: dict[str, Any] | None
    result: dict[str, Any]
    files: list[str]


class Versions(TypedDict):
    """A model's versions, oldest first, and which serves: each has `version` and, of its card, `parent`, `metrics`,
    `verdict` and more."""

    production: str | None
    versions: list[dict[str, Any]]


class InteractionState(TypedDict):
    """An interaction: `prompts` are those in force; `events` has `step`, `kind`, `prompt`, `model_version` and `ts`."""

    id: str
    image: str
    model: str
    user: str
    step: int
    prompts: list[dict[str, Any]]
    can_undo: bool
    can_redo: bool
    events: list[dict[str, Any]]


class ModelFile(TypedDict):
    """A model's weights: `checksum` is `SHA256:<hex>`."""

    checksum: str
    modified_time: int


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """A model's answer.

    `params` holds `label_names`, `latencies` and more. The mask is in `body`, or in the file `path` if one was asked
    for; both are None for a model that answers JSON alone. `filename` carries the mask's extension.
    """

    params: dict[str, Any]
    filename: str | None = None
    media_type: str | None = None
    body: bytes | None = None
    path: Path | None = None

    def labels(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The mask's voxels, shape (I, J, K), on the image's grid as its file lays it out.

        Raises Unreadable if there is no mask or it is damaged.
        """
        from rayapp.imaging import mask_codec, reader  # sending needs none of the packages that reading needs

        if self.path is not None:
            return reader.read_segmentation(self.path, max_bytes=MAX_LABELS).array
        if self.body is None:
            raise Unreadable("the model answered no mask")
        if self.media_type == MASK_MEDIA_TYPE:
            return mask_codec.decode(self.body)
        _, extension = reader.split_ext(self.filename or "")
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            file = Path(folder) / f"mask{extension}"
            file.write_bytes(self.body)
            return reader.read_segmentation(file, max_bytes=MAX_LABELS).array
