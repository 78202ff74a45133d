"""The Datastore seam: what a store of images, labels and clicks answers, and the messages it speaks in.

Methods are synchronous and thread-safe; a durable method returns only when its effect survives power loss. Ids and
tags are checked names (`rayapp.protocol.checked_name`). Paths are on storage that gateways and replicas share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Info = dict[str, Any]
"""Free JSON about an image or a label (`ts` and `name` always; see the MONAI Label layout)."""


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who did it: the authenticated user's name ("admin" without authentication) and the client program's id."""

    user: str = "admin"
    client_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image: `path` is its file (or DICOM folder), `ext` with the leading dot."""

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


class Datastore(Protocol):
    """Images, labels, revisions, infos and the click log of one study set."""

    def status(self) -> Info:
        """`{"total", "completed", "label_tags": {tag: n}}`; completed counts images with a `final` label."""

    def image(self, image_id: str) -> ImageRecord:
        """The image. Raises NotFound."""

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

    def unlabeled(self, *, tag: str = "final", order: Order = "first", limit: int = 1) -> list[str]:
        """Ids without a label under `tag`: in order, reversed, or sampled with weight by age since last served."""

    def serve_next(self, image_id: str, strategy: str, *, client_id: str | None, ts: int) -> None:
        """Record durably that the strategy handed the image out: `info.strategy[strategy]`, the age of `unlabeled`."""

    def datalist(self, *, tag: str = "final", kept: bool = False) -> list[dict[str, str]]:
        """`[{"image": path, "label": path}]` of labelled images, for training.

        With `kept` the label's path is that of its revision, which stays as it is whatever is saved or removed later.
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
