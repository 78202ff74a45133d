"""The `Datastore` protocol: images, labels, the worklist, scores and the click log of one study set.

`Datastore` is the sum of one protocol for each noun. Methods are synchronous and thread-safe; one that is documented as
durable returns only when its effect survives power loss, and may be repeated after a fault. Image ids and tags are
checked names (`rayapp.protocol.checked_name`). Paths are on storage that the gateways and the replicas share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Info = dict[str, Any]
"""Free JSON about an image or a label; `ts` (Unix seconds) and `name` (file name) are always there, as in the layout of
MONAI Label."""
SERIES_EXT = ".nii"
"""Extension under which a client downloads an image that is a folder of DICOM files."""
NOT_STORABLE = "not_storable"
"""Key in the info of an archive's series: the reason why no DICOM SEG can be stored for it, known in advance."""


@dataclass(frozen=True, kw_only=True)
class Author:
    """The authenticated user ("admin" without authentication) and the id of their client program."""

    user: str = "admin"
    client_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image: a file with its extension `ext` (leading dot), or a folder of DICOM files, whose `ext` is ""."""

    id: str
    path: Path
    ext: str
    info: Info = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelRecord:
    """The newest revision of an image's label under one tag.

    `id` is the image's id, `revision` the SHA-256 of the file, `number` the revision's place among those of this image
    and tag, from 1.
    """

    id: str
    tag: str
    path: Path
    ext: str
    revision: str
    number: int
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
    """One entry of the click log; an interaction is a fold over its entries.

    `kind` is "click" or "scribble" for a prompt that stands alone, and "open", "prompt", "undo", "redo" or "withdraw"
    within an interaction. `payload` is the prompt: points by label name, region of interest and so on. `ts` is in Unix
    seconds; the store assigns `seq`, which counts up by one over the whole log.
    """

    image_id: str
    kind: str
    payload: Info
    model: str | None = None
    model_version: str | None = None
    user: str = "admin"
    client_id: str | None = None
    ts: float = 0.0
    seq: int = 0

    @property
    def interaction(self) -> str | None:
        """Key of the interaction that the entry belongs to, None for a prompt that stands alone."""
        return self.payload.get("interaction")


Order = Literal["first", "last", "age"]
"""Ascending, descending, or sampled with a weight that grows with the time since the image was last handed out."""
Labelled = Literal["unlabeled", "labeled", "all"]
"""Images without a `final` label, with one, or all."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Result of a scoring run for one image.

    Attributes:
        run: identifies the method, model version and options with which the image was scored.
        ts: Unix seconds.
        failed: the run could not score the image; everything below is then empty.
        values: scores by name, as strategies rank by them.
        feature: embedding of the image, by which images are compared.
        info: merged into the image's info.
        label_infos: by tag, merged into the labels' infos.
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
    """Image ids by score, and the share of the unlabelled images that have that score (0 to 1)."""

    ids: Sequence[str]
    known: float


class ImageStore(Protocol):
    """Images and their infos."""

    def image(self, image_id: str) -> ImageRecord:
        """One image. Raises NotFound."""

    def image_ids(self, *, after: str | None = None, limit: int | None = None) -> list[str]:
        """Ids in ascending order: at most `limit`, beginning with the first one greater than `after`."""

    def instances(self, image_id: str) -> Path:
        """Folder with the DICOM files of the image.

        Raises:
            NotFound: there is no such image.
            BadRequest: the image is not a DICOM series.
        """

    def add_image(
        self, image_id: str, staged: Path, ext: str, *, info: Mapping[str, Any], author: Author
    ) -> ImageRecord:
        """Durably take over a file as a new image.

        Args:
            image_id: the new id.
            staged: a file that was checked, at a path from `stage`.
            ext: extension with the leading dot.
            info: becomes the image's info.
            author: the user who sent it.

        Raises:
            Conflict: the id exists.
        """

    def remove_image(self, image_id: str) -> None:
        """Durably remove the image and its labels. Raises NotFound."""

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> Info:
        """Durably merge keys into the image's info and return the result. Raises NotFound."""


class LabelStore(Protocol):
    """Labels of images by tag; every saved state stays as a revision."""

    def label(self, image_id: str, tag: str) -> LabelRecord:
        """Newest revision under the tag. Raises NotFound."""

    def labels(self, image_id: str) -> dict[str, LabelRecord]:
        """Newest revisions by tag, in the order of their first save. Raises NotFound for an unknown image."""

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
        expected: int | None = None,
    ) -> LabelRecord:
        """Durably take over a file as the newest revision under the tag.

        Args:
            image_id: the image that the label belongs to.
            tag: "final" for a label that an annotator finished.
            staged: a label map on the image's grid that was checked, at a path from `stage`.
            ext: extension with the leading dot.
            info: replaces the label's info.
            author: the user who saved it.
            model_version: version of the model that the label began with, if any.
            expected: number of the revision that this one was made from, 0 for none; None to save in any case.

        Raises:
            NotFound: there is no such image.
            Conflict: another revision than `expected` is the newest; it says who saved it and when.
        """

    def remove_label(self, image_id: str, tag: str, *, expected: int | None = None) -> bool:
        """Durably remove the label under the tag; its revisions stay. False if there was none.

        Args:
            image_id: the image that the label belongs to.
            tag: the label's tag.
            expected: number of the revision to remove; None to remove whichever is the newest.

        Raises:
            Conflict: another revision than `expected` is the newest.
        """

    def update_label_info(self, image_id: str, tag: str, info: Mapping[str, Any]) -> Info:
        """Durably merge keys into the label's info and return the result. Raises NotFound."""

    def revisions(self, image_id: str, tag: str) -> list[Revision]:
        """All revisions under the tag, oldest first."""


class WorklistStore(Protocol):
    """The order of the unlabelled images, and the leases on those that were handed out."""

    def unlabeled(
        self, *, tag: str = "final", order: Order = "first", limit: int = 1, holder: str | None = None
    ) -> list[str]:
        """Ids of images without a label under `tag`, except those leased to somebody other than `holder`."""

    def serve_next(
        self, image_id: str, strategy: str, *, client_id: str | None, ts: int, holder: str | None = None
    ) -> ImageRecord | None:
        """Durably record that a strategy handed the image out.

        Args:
            image_id: the image.
            strategy: its name; the record is `info.strategy[strategy]`, which `Order` "age" reads.
            client_id: the client program that asked.
            ts: Unix seconds.
            holder: gets a lease on the image, which ends with a `final` label or after a while without activity.

        Returns:
            The image, which is not retrieved from an archive for this; None, and nothing is recorded, if somebody other
            than `holder` has a lease on it.
        """

    def quarantine(self, image_id: str, reason: str) -> None:
        """Quarantine an unreadable image for one hour, during which it is not handed out.

        The reason and the time are kept in `info["unreadable"]`.

        Raises:
            NotFound: there is no such image.
        """


class ScoreStore(Protocol):
    """Scores and features of images, recorded by scoring runs."""

    def save_scores(self, scores: Sequence[ImageScore]) -> None:
        """Durably record results; a newer score of a name replaces the image's older one."""

    def unscored(
        self, run: str, *, images: Labelled = "unlabeled", failed: bool = True, limit: int | None = None
    ) -> list[str]:
        """At most `limit` ids, ascending, that the run has not scored; with `failed` also those that it failed on."""

    def score_names(self) -> list[str]:
        """Names under which images have scores, ascending."""

    def ranked(
        self, name: str, *, tag: str = "final", power: float | None = None, limit: int = 1, holder: str | None = None
    ) -> Ranked:
        """Images without a label under `tag`, by a score, highest first.

        Args:
            name: the score.
            tag: images with a label under this tag are left out.
            power: draw without replacement with a probability proportional to score ** power instead (power sampling;
                Kirsch et al., Stochastic Batch Acquisition, 2023); images whose score is 0 are then left out.
            limit: maximum number of images.
            holder: images leased to others are left out.
        """

    def features(self, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Features by id, of those images that have one."""

    def farthest(self, ids: Sequence[str], *, against: int) -> str | None:
        """The image among `ids` that is least similar to the labelled ones (greedy core-set selection).

        Args:
            ids: candidates.
            against: number of most recently labelled images (`final`) to compare with.

        Returns:
            The id with the largest distance to its nearest labelled neighbour in feature space; None without features.
        """


class ClickStore(Protocol):
    """The click log: every prompt of every annotator, append-only."""

    def append_events(self, events: Sequence[ClickEvent]) -> list[int]:
        """Durably append to the log and return the sequence numbers."""

    def append_turn(self, event: ClickEvent, *, opened: int, after: int) -> list[ClickEvent]:
        """Durably append the next entry of an interaction, unless the log already has newer entries of it.

        Args:
            event: the entry.
            opened: sequence number of the entry that opened the interaction.
            after: sequence number of the interaction's last entry that the caller knows.

        Returns:
            The interaction's entries after `after`: the new one alone; or those appended by others meanwhile, in which
            case `event` is not appended (unless it is among them).

        Raises:
            NotFound: the image or the interaction no longer exists.
        """

    def event(self, seq: int) -> ClickEvent:
        """One entry. Raises NotFound."""

    def events(self, image_id: str, *, user: str | None = None, after: int = 0) -> list[ClickEvent]:
        """The image's entries in order, after sequence number `after`; with `user`, only that user's."""


class Datastore(ImageStore, LabelStore, WorklistStore, ScoreStore, ClickStore, Protocol):
    """One study set. The only writer of its folder or archive."""

    def status(self) -> Info:
        """`{"total", "completed", "label_tags": {tag: n}}`; `completed` counts images with a `final` label."""

    def datalist(
        self, *, tag: str = "final", immutable: bool = False, images: Path | None = None
    ) -> list[dict[str, Any]]:
        """Labelled images for training, as `[{"image": path, "label": path}]`.

        Args:
            tag: tag of the labels.
            immutable: give each label's revision file, which later saves and removals leave unchanged, together with
                its `info` and a key that identifies the image's `patient` (None if unknown).
            images: a folder on the same file system in which the images of a datastore that may evict them, such as one
                on an archive, are hard-linked; the links stay until the caller deletes them. Images of a studies folder
                stay where they are.

        Raises:
            Busy: images are still being retrieved from an archive; try again.
        """

    def document(self) -> Info:
        """The whole store in the layout of `datastore_v2.json`, without `base_path`."""

    def archive(self, target: Path, *, limit: int | None = None) -> int:
        """Write a zip of images with their `final` labels (`image/…`, `label/…`, `metadata.json`) to `target`.

        Returns:
            The number of pairs, at most `limit`.
        """

    def refresh(self) -> None:
        """Rescan the folder or archive: new images appear, vanished ones go."""

    def staging(self) -> Path:
        """Folder on the store's own file system for files that the store will take over; abandoned files are
        deleted.
        """

    def stage(self, suffix: str) -> Path:
        """A new path in `staging`, like those of `rayapp.files.durable.new_path`."""
