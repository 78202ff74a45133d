"""Labels that the archive has already: DICOM SEGs of a series, by others or by an earlier server of ours.

They are looked for when a series is retrieved, and again when somebody asks for its labels, at most once in a while.
The newest of ours becomes the label `final` where there is none. The newest by somebody else becomes `original`, which
3D Slicer shows as a pre-segmentation, and takes the place of an older one that came from the archive too. A label map
cannot hold segments that overlap: smaller ones lie over larger ones in it, and the archive keeps the whole.
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
from rayapp.imaging.dicom_seg import MANUFACTURER, Overlapping, flattened, read_masks, read_segmentation
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.protocol import FINAL, ORIGINAL

OVERLAPPING = "overlapping"
"""In the info of a label whose segments overlap in the archive."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ArchivedLabel:
    """A label that was found: the tag that it belongs under, and what its info says."""

    tag: str
    label: Segmentation
    info: Info


class ArchivedLabels:
    """Looks for labels in the archive, and knows what was looked at. One look at a time."""

    def __init__(self, pacs: PacsClient, *, fresh: float, max_bytes: int) -> None:
        self._pacs = pacs
        self._fresh = fresh
        self._max_bytes = max_bytes
        self._looked: dict[str, float] = {}
        self._seen: dict[str, set[str]] = {}

    def due(self, series: str) -> bool:
        """Whether the last look at the series' labels is no longer fresh."""
        return time.monotonic() - self._looked.get(series, -self._fresh) >= self._fresh

    def new(
        self, study: str, series: str, grid: Grid, *, tags: Collection[str], known: Collection[str]
    ) -> Iterator[ArchivedLabel]:
        """What came since the last look for these tags, but the SEG series `known`.

        What cannot be read is passed over. Raises ArchiveAway, NotFound; then the next look starts anew.
        """
        self._looked[series] = time.monotonic()  # whatever comes of it: an archive that is away is asked as seldom
        seen = self._seen.get(series, set())
        found = self._pacs.segmentations(study, known={*seen, *known})
        for tag in tags:
            ours = (one for one in found if one.of == series and _tag(one) == tag)
            for one in sorted(ours, key=_age, reverse=True):
                try:
                    label, overlapping = self._read(study, one, grid)
                except Unreadable as error:
                    log.warning("a segmentation of the archive is passed over: %s", error.detail)
                    continue
                yield ArchivedLabel(tag=tag, label=label, info={**_info(study, one, label), **overlapping})
                break
        self._seen[series] = seen | {one.series for one in found}

    def _read(self, study: str, found: SegSeries, grid: Grid) -> tuple[Segmentation, Info]:
        """The label map, and what its info is to say of overlaps."""
        instances = [file for _, file in self._pacs.retrieve(study, found.series)]
        if len(instances) != 1:
            raise Unreadable("the series holds more than one segmentation")
        with tempfile.TemporaryDirectory(prefix="rayapp-seg") as folder:
            path = Path(folder) / "seg.dcm"
            path.write_bytes(instances[0])
            try:
                return read_segmentation(path, grid, max_bytes=self._max_bytes), {}
            except Overlapping:
                return flattened(read_masks(path, grid, max_bytes=self._max_bytes)), {OVERLAPPING: True}


def _tag(found: SegSeries) -> str:
    return FINAL if found.manufacturer == MANUFACTURER and found.description.startswith(FINAL) else ORIGINAL


def _age(found: SegSeries) -> tuple[int, str]:
    """Ours by the number of the revision, which the description has; the others by their date."""
    number = re.match(rf"{FINAL} (\d+)", found.description)
    return int(number[1]) if number and _tag(found) == FINAL else 0, found.made


def _info(study: str, found: SegSeries, label: Segmentation) -> Info:
    return {
        "label_info": [{"name": name, "idx": value} for name, value in label.names.items()],
        "params": {"label_names": dict(label.names)},
        "SeriesInstanceUID": found.series,
        "StudyInstanceUID": study,
        "Modality": "SEG",
        "SeriesDescription": found.description,
    }
