"""The Datastore seam: what a store of images, labels and clicks answers, and the messages it speaks in.

Methods are synchronous and thread-safe; a durable method returns only when its effect survives power loss. Ids and
tags are checked names (`rayapp.protocol.checked_name`). Paths are on storage that gateways and replicas share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Info = dict[str, Any]
"""Free JSON about an image or a label (`ts` and `name` always; see the MONAI Label layout)."""
SERIES_EXT = ".nii"
"""Of the file that a client gets for a folder of DICOM files, and so in its name."""


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who did it: the authenticated user's name ("admin" without authentication) and the client program's id."""

    user: str = "admin"
    client_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image: `path` is its file, `ext` with the leading dot; or a folder of DICOM files, without an `ext`."""

    id: str
    path: Path
    ext: str
    info: Info = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelRecord:
    """One label of an image under a tag: the newest revision. `id` equals the image id."""

    id: str
    tag: str
    path: Path
    ext: str
    revision: str
    info: Info = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One saved state of a label. `id` is the SHA-256 of the file; `number` counts from 1 within (image, tag)."""

    id: str
    number: int
    image_id: str
    tag: str
    ext: str
    parent: int | None
    ts: float
    user: str
    client_id: str | None
    model_version: str | None
    path: Path
    info: Info


@dataclass(frozen=True, kw_only=True)
class ClickEvent:
    """One prompt of the click log: the session is a fold over these."""

    image_id: str
    kind: str  # "click", "scribble"; in an interaction "open", "prompt", "undo", "redo", "withdraw"
    payload: Info  # the prompt itself: points by label name, roi, …
    model: str | None = None
    model_version: str | None = None
    user: str = "admin"
    client_id: str | None = None
    ts: float = 0.0
    seq: int = 0  # assigned by the store, grows by one over the whole log


Order = Literal["first", "last", "age"]
Labelled = Literal["unlabeled", "labeled", "all"]
"""Which images: without a final label, with one, or all."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """What a scoring run found of one image.

    `run` names the model version, method and settings that it was scored with. `values` are the scores by name that
    strategies choose by, `feature` is what the image looks like; `info` and `label_infos` (by tag) are merged into the
    infos. A run that `failed` on the image has none of these.
    """

    image_id: str
    run: str
    ts: float
    failed: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    feature: Sequence[float] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    label_infos: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Images by a score; `known` is the share of the unlabelled images that have it."""

    ids: Sequence[str]
    known: float


class Datastore(Protocol):
    """Images, labels, revisions, infos and the click log of one study set."""

    def status(self) -> Info:
        """`{"total", "completed", "label_tags": {tag: n}}`; completed counts images with a `final` label."""

    def image(self, image_id: str) -> ImageRecord:
        """The image. Raises NotFound."""

    def instances(self, image_id: str) -> Path:
        """The folder with the DICOM files of the image. Raises NotFound, and BadRequest for an image of other files."""

    def image_ids(self, *, after: str | None = None, limit: int | None = None) -> list[str]:
        """Ids in ascending order, from the one behind `after`."""

    def add_image(
        self, image_id: str, staged: Path, ext: str, *, info: Mapping[str, Any], author: Author
    ) -> ImageRecord:
        """Durably take over the checked file `staged` (from `stage`) as an image. Raises Conflict if the id exists."""

    def remove_image(self, image_id: str) -> None:
        """Remove the image and its labels. Raises NotFound."""

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> Info:
        """Merge keys durably; the whole info afterwards. Raises NotFound."""

    def label(self, image_id: str, tag: str) -> LabelRecord:
        """The newest revision under the tag. Raises NotFound."""

    def labels(self, image_id: str) -> dict[str, LabelRecord]:
        """By tag, in order of first save. Raises NotFound for an unknown image."""

    def save_label(
        self,
        image_id: str,
        tag: str,
        staged: Path,
        ext: str,
        *,
        info: Mapping[str, Any],
        author: Author,
        model_version: str | None = None,
    ) -> LabelRecord:
        """Durably take over the checked file `staged` as the tag's newest revision; its info replaces the old one.

        Raises NotFound for an unknown image.
        """

    def remove_label(self, image_id: str, tag: str) -> bool:
        """Remove the label under the tag (its revisions stay); False if there was none."""

    def update_label_info(self, image_id: str, tag: str, info: Mapping[str, Any]) -> Info:
        """Merge keys durably; the whole info afterwards. Raises NotFound."""

    def revisions(self, image_id: str, tag: str) -> list[Revision]:
        """Oldest first."""

    def unlabeled(
        self, *, tag: str = "final", order: Order = "first", limit: int = 1, holder: str | None = None
    ) -> list[str]:
        """Ids without a label under `tag`: in order, reversed, or sampled with weight by age since last served.

        Images that somebody else than `holder` holds are left out.
        """

    def serve_next(
        self, image_id: str, strategy: str, *, client_id: str | None, ts: int, holder: str | None = None
    ) -> ImageRecord | None:
        """Record durably that the strategy handed the image out: `info.strategy[strategy]`, the age of `unlabeled`.

        With `holder` it is theirs until it has a final label, or nobody has worked on it for a while. Returns the
        image, which is not retrieved for that; None, and nothing is recorded, if somebody else holds it.
        """

    def quarantine(self, image_id: str, reason: str) -> None:
        """Quarantine an unreadable image for one hour: until then it is handed out to nobody.

        The reason and the time are kept in `info["unreadable"]`. Raises NotFound.
        """

    def save_scores(self, scores: Sequence[ImageScore]) -> None:
        """Durably record what scoring found; a name's newer score replaces the image's older one."""

    def unscored(self, run: str, *, images: Labelled = "unlabeled", failed: bool = True) -> list[str]:
        """Ids, ascending, that this run has not scored; with `failed` also those it failed on."""

    def score_names(self) -> list[str]:
        """The names under which images have scores, ascending."""

    def ranked(
        self, name: str, *, tag: str = "final", power: float | None = None, limit: int = 1, holder: str | None = None
    ) -> Ranked:
        """Images without a label under `tag` by the score of that name, highest first.

        With `power` they are drawn without replacement, with a chance that goes with score ** power (power noise,
        Kirsch et al., Stochastic Batch Acquisition, 2023); then images of a score of 0 are left out. So are those that
        somebody else than `holder` holds.
        """

    def features(self, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """What the images look like, by id, of those that were scored."""

    def farthest(self, ids: Sequence[str], *, against: int) -> str | None:
        """Of these images the one that looks least like any of the `against` images that got a final label last, by
        the distance between features; None where no features tell."""

    def datalist(self, *, tag: str = "final", immutable: bool = False) -> list[dict[str, str]]:
        """`[{"image": path, "label": path}]` of labelled images, for training.

        With `immutable` the label's path is that of its revision file, which later saves and removals leave unchanged.
        """

    def document(self) -> Info:
        """The whole store in the layout of `datastore_v2.json`, without `base_path`."""

    def append_events(self, events: Sequence[ClickEvent]) -> list[int]:
        """Durably append to the click log; the sequence numbers given."""

    def event(self, seq: int) -> ClickEvent:
        """One event of the log. Raises NotFound."""

    def events(self, image_id: str, *, user: str | None = None, after: int = 0) -> list[ClickEvent]:
        """The image's log in order, from behind sequence number `after`."""

    def refresh(self) -> None:
        """Look at the folder again: new images appear, vanished ones go."""

    def stage(self, suffix: str) -> Path:
        """A new path on the store's own file system to write an upload to; swept if never taken over."""

    def archive(self, target: Path, *, limit: int | None = None) -> int:
        """Write the zip of `final` pairs (`image/…`, `label/…`, `metadata.json`) to `target`; the number of pairs."""
