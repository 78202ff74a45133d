"""Labels that the archive has already: DICOM SEGs of a series, by others or by an earlier server of ours.

They are looked for when a series is retrieved, and become its labels where there are none under that tag: the newest of
ours as `final`, the first by somebody else as `original`, which 3D Slicer shows as a pre-segmentation.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore.pacs import Found, Pacs
from rayapp.datastore.protocol import Info
from rayapp.errors import Unreadable
from rayapp.imaging.dicom_seg import MANUFACTURER, read_segmentation
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.protocol import FINAL, ORIGINAL

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Archived:
    """A label that was found: the tag that it belongs under, and what its info says."""

    tag: str
    label: Segmentation
    info: Info


def archived(pacs: Pacs, study: str, series: str, grid: Grid, *, tags: set[str], max_bytes: int) -> Iterator[Archived]:
    """The labels that the archive has for these tags. One that cannot be read as a label map is passed over.

    Raises ArchiveAway, NotFound.
    """
    for tag in tags:
        for found in sorted(
            (one for one in pacs.segmentations(study, series) if _tag(one) == tag), key=_number, reverse=tag == FINAL
        ):
            try:
                label = _read(pacs, study, found, grid, max_bytes)
            except Unreadable as error:
                log.warning("a segmentation of the archive is passed over: %s", error.detail)
                continue
            yield Archived(tag=tag, label=label, info=_info(study, found, label))
            break


def _tag(found: Found) -> str:
    return FINAL if found.manufacturer == MANUFACTURER and found.description.startswith(FINAL) else ORIGINAL


def _number(found: Found) -> int:
    """Of the revision that it was, in its description."""
    number = re.match(rf"{FINAL} (\d+)", found.description)
    return int(number[1]) if number else 0


def _read(pacs: Pacs, study: str, found: Found, grid: Grid, max_bytes: int) -> Segmentation:
    instances = [file for _, file in pacs.retrieve(study, found.series)]
    if len(instances) != 1:
        raise Unreadable("the series holds more than one segmentation")
    with tempfile.TemporaryDirectory(prefix="rayapp-seg") as folder:
        path = Path(folder) / "seg.dcm"
        path.write_bytes(instances[0])
        return read_segmentation(path, grid, max_bytes=max_bytes)


def _info(study: str, found: Found, label: Segmentation) -> Info:
    return {
        "label_info": [{"name": name, "idx": value} for name, value in label.names.items()],
        "params": {"label_names": dict(label.names)},
        "SeriesInstanceUID": found.series,
        "StudyInstanceUID": study,
        "Modality": "SEG",
        "SeriesDescription": found.description,
    }
