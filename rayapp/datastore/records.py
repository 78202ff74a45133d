"""RecordMapper: turns rows of the index into the records of `rayapp.datastore.interfaces`, with their file paths."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rayapp.datastore.folder_scan import LABELS
from rayapp.datastore.image_names import label_name
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import info_of
from rayapp.datastore.interfaces import ImageRecord, LabelRecord, Revision
from rayapp.datastore.revisions import RevisionStore

IMAGE = "SELECT id, ext, info FROM image"
LABEL = "SELECT image_id, tag, ext, sha, number, info FROM label"
REVISION = "SELECT image_id, tag, number, parent, ts, user, client_id, model_version, sha, ext, info FROM revision"


class RecordMapper:
    """Builds the records of one studies folder."""

    def __init__(
        self, studies: Path, files: RevisionStore, source: ImageSource, late: Collection[tuple[str, str]]
    ) -> None:
        """Prepare it; `late` holds the (image id, tag) of labels whose files are not published yet."""
        self._source = source
        self._labels = studies / LABELS
        self._files = files
        self._late = late

    def image(self, row: tuple[Any, ...]) -> ImageRecord:
        """The record of a row of `IMAGE`."""
        image_id, ext, info = row
        return ImageRecord(id=image_id, path=self._source.path(image_id, ext), ext=ext.lower(), info=info_of(info))

    def label(self, row: tuple[Any, ...]) -> LabelRecord:
        """The record of a row of `LABEL`."""
        image_id, tag, ext, sha, number, info = row
        late = (image_id, tag) in self._late
        path = self._files.path(sha, ext) if late else self._labels / tag / label_name(image_id, ext)
        return LabelRecord(id=image_id, tag=tag, path=path, ext=ext, revision=sha, number=number, info=info_of(info))

    def revision(self, row: tuple[Any, ...]) -> Revision:
        """The record of a row of `REVISION`."""
        image_id, tag, number, parent, ts, user, client_id, model_version, sha, ext, info = row
        return Revision(
            id=sha,
            number=number,
            image_id=image_id,
            tag=tag,
            ext=ext,
            parent=parent,
            ts=ts,
            user=user,
            client_id=client_id,
            model_version=model_version,
            path=self._files.path(sha, ext),
            info=info_of(info),
        )
