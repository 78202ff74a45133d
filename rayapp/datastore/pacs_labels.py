"""Labels already in the archive: DICOM SEG objects of a series, made by others or by an earlier server of ours.

They are searched for when a series is retrieved, and again, at most once per `fresh` seconds, when its labels are
requested. The newest of ours becomes the `final` label if there is none. The newest made by others becomes the
`original` label, which 3D Slicer shows as a pre-segmentation. A newer label from the archive replaces an older one from
the archive, never one that was saved here. Each segmentation is considered once, so one that was skipped, replaced or
deleted does not come back. Where segments overlap, the smaller one covers the larger, since a label map cannot hold
both; the archive keeps the original.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore.interfaces import Info
from rayapp.datastore.pacs import PacsClient, SegSeries
from rayapp.datastore.series_facts import SeriesFacts
from rayapp.datastore.series_parts import series_of
from rayapp.errors import Unreadable
from rayapp.imaging.dicom_seg import MANUFACTURER, OverlappingSegments, read_masks, read_segmentation
from rayapp.imaging.volume import Grid, Segmentation, flatten
from rayapp.protocol import FINAL, ORIGINAL

OVERLAPPING = "overlapping"
"""Key in the info of a label whose segments overlap in the archive."""

CREATED = "created"
"""Key in the info of a label from the archive: its content date and time, as a sortable string."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ArchivedLabel:
    """A label found in the archive: the tag it belongs under, the label map, and its info."""

    tag: str
    label: Segmentation
    info: Info


class ArchivedLabels:
    """Finds new labels in the archive. Thread-safe; one search for each image at a time."""

    def __init__(self, pacs: PacsClient, *, fresh: float, max_bytes: int) -> None:
        self._pacs = pacs
        self._fresh = fresh
        self._max_bytes = max_bytes
        self._searched: dict[str, float] = {}
        self._unreadable: dict[str, set[str]] = {}
        """Segmentations that cannot be read as labels of an image, by its id."""

    def due(self, image_id: str) -> bool:
        """True if the last search for the image's labels is older than `fresh` seconds."""
        return time.monotonic() - self._searched.get(image_id, -self._fresh) >= self._fresh

    def search(self, study: str, image_id: str, facts: SeriesFacts, *, known: Collection[str]) -> list[SegSeries]:
        """The image's segmentations, newest first.

        A segmentation that names no series counts for every series in its frame of reference; whether it lies on the
        image's voxels is checked when it is read. One that names instances does not count for a part of the series
        that has none of them.

        Args:
            study: StudyInstanceUID.
            image_id: the image.
            facts: of the image.
            known: SeriesInstanceUIDs of SEG series to ignore.

        Raises:
            ArchiveAway, NotFound: from the archive; the next search then starts over.
        """
        self._searched[image_id] = time.monotonic()  # also if it fails: an unavailable archive is not asked more often
        segmentations = self._pacs.segmentations(study, known={*self._unreadable.get(image_id, ()), *known})
        frame, instances = facts.frame_of_reference, facts.instances
        own = (
            seg
            for seg in segmentations
            if seg.of == series_of(image_id) or (frame and not seg.of and seg.frame_of_reference == frame)
            if not instances or not seg.instances or not seg.instances.isdisjoint(instances)
        )
        return sorted(own, key=_age, reverse=True)

    def newest(
        self, study: str, image_id: str, segmentations: Sequence[SegSeries], grid: Grid, *, tag: str, after: str
    ) -> ArchivedLabel | None:
        """The newest segmentation for the tag, as a label. Unreadable ones are skipped.

        Args:
            study: StudyInstanceUID.
            image_id: the image.
            segmentations: the result of `search`.
            grid: the image's voxel grid.
            tag: the tag.
            after: content date and time; only newer ones are considered. "" for all.

        Raises:
            ArchiveAway, NotFound: from the archive.
        """
        for seg in segmentations:
            if _tag(seg) == tag and (not after or seg.created > after):
                try:
                    label, overlapping = self._read(study, seg, grid)
                except Unreadable as error:
                    log.warning("skipped an unreadable segmentation of the archive: %s", error.detail)
                    self._unreadable.setdefault(image_id, set()).add(seg.series)
                    continue
                return ArchivedLabel(tag=tag, label=label, info={**_info(study, seg, label), **overlapping})
        return None

    def readable(self, image_id: str, segmentations: Iterable[SegSeries]) -> list[str]:
        """SeriesInstanceUIDs of the segmentations that could be read. The others may be readable by a later version, so
        they are not recorded as considered.
        """
        return [seg.series for seg in segmentations if seg.series not in self._unreadable.get(image_id, ())]

    def _read(self, study: str, seg: SegSeries, grid: Grid) -> tuple[Segmentation, Info]:
        """The label map, and the addition to its info if its segments overlap."""
        instances = [file for _, file in self._pacs.retrieve(study, seg.series)]
        if len(instances) != 1:
            raise Unreadable("the series does not hold exactly one segmentation object")
        with tempfile.TemporaryDirectory(prefix="rayapp-seg") as folder:
            path = Path(folder) / "seg.dcm"
            path.write_bytes(instances[0])
            try:
                return read_segmentation(path, grid, max_bytes=self._max_bytes), {}
            except OverlappingSegments:
                return flatten(read_masks(path, grid, max_bytes=self._max_bytes)), {OVERLAPPING: True}


def _tag(seg: SegSeries) -> str:
    return FINAL if seg.manufacturer == MANUFACTURER and seg.description.startswith(FINAL) else ORIGINAL


def _age(seg: SegSeries) -> tuple[str, int]:
    """Sort key: content date and time, then the revision's number from our own labels' description."""
    number = re.match(rf"{FINAL} (\d+)", seg.description)
    return seg.created, int(number[1]) if number and _tag(seg) == FINAL else 0


def _info(study: str, seg: SegSeries, label: Segmentation) -> Info:
    return {
        "label_info": [{"name": name, "idx": value} for name, value in label.names.items()],
        "params": {"label_names": dict(label.names)},
        "SeriesInstanceUID": seg.series,
        "StudyInstanceUID": study,
        "Modality": "SEG",
        "SeriesDescription": seg.description,
        CREATED: seg.created,
    }
