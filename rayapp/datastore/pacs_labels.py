"""Labels already in the archive: DICOM SEG objects of a series, made by others or by an earlier server of ours.

They are searched for when a series is retrieved, and again, at most once per `fresh` seconds, when its labels are
requested. The newest of ours becomes the `final` label if there is none. The newest made by others becomes the
`original` label, which 3D Slicer shows as a pre-segmentation; it replaces an earlier one from the archive. A label map
cannot hold overlapping segments: there the smaller segment covers the larger one, and the archive keeps the original.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore.interfaces import Info
from rayapp.datastore.pacs import PacsClient, SegSeries
from rayapp.errors import Unreadable
from rayapp.imaging.dicom_seg import MANUFACTURER, OverlappingSegments, flatten, read_masks, read_segmentation
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.protocol import FINAL, ORIGINAL

OVERLAPPING = "overlapping"
"""Key in the info of a label whose segments overlap in the archive."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ArchivedLabel:
    """A label found in the archive: the tag it belongs under, the label map, and its info."""

    tag: str
    label: Segmentation
    info: Info


class ArchivedLabels:
    """Finds new labels in the archive, remembering which were seen. One search at a time."""

    def __init__(self, pacs: PacsClient, *, fresh: float, max_bytes: int) -> None:
        self._pacs = pacs
        self._fresh = fresh
        self._max_bytes = max_bytes
        self._searched: dict[str, float] = {}
        self._seen: dict[str, set[str]] = {}

    def due(self, series: str) -> bool:
        """True if the last search for the series' labels is older than `fresh` seconds."""
        return time.monotonic() - self._searched.get(series, -self._fresh) >= self._fresh

    def new(
        self, study: str, series: str, grid: Grid, *, tags: Collection[str], known: Collection[str]
    ) -> Iterator[ArchivedLabel]:
        """The newest label for each of `tags` that appeared since the last search. Unreadable ones are skipped.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID of the image.
            grid: the image's voxel grid.
            tags: tags to search labels for.
            known: SeriesInstanceUIDs of SEG series to ignore.

        Raises:
            ArchiveAway, NotFound: from the archive; the next search then starts over.
        """
        self._searched[series] = time.monotonic()  # also if it fails: an unavailable archive is not asked more often
        seen = self._seen.get(series, set())
        segmentations = self._pacs.segmentations(study, known={*seen, *known})
        for tag in tags:
            candidates = (seg for seg in segmentations if seg.of == series and _tag(seg) == tag)
            for seg in sorted(candidates, key=_age, reverse=True):
                try:
                    label, overlapping = self._read(study, seg, grid)
                except Unreadable as error:
                    log.warning("skipped an unreadable segmentation of the archive: %s", error.detail)
                    continue
                yield ArchivedLabel(tag=tag, label=label, info={**_info(study, seg, label), **overlapping})
                break
        self._seen[series] = seen | {seg.series for seg in segmentations}

    def _read(self, study: str, seg: SegSeries, grid: Grid) -> tuple[Segmentation, Info]:
        """The label map, and additions to its info: whether its segments overlap."""
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


def _age(seg: SegSeries) -> tuple[int, str]:
    """Sort key: revision number for our own labels, which their description holds; date and time for the others."""
    number = re.match(rf"{FINAL} (\d+)", seg.description)
    return int(number[1]) if number and _tag(seg) == FINAL else 0, seg.created


def _info(study: str, seg: SegSeries, label: Segmentation) -> Info:
    return {
        "label_info": [{"name": name, "idx": value} for name, value in label.names.items()],
        "params": {"label_names": dict(label.names)},
        "SeriesInstanceUID": seg.series,
        "StudyInstanceUID": study,
        "Modality": "SEG",
        "SeriesDescription": seg.description,
    }
