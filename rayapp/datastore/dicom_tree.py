"""DicomTree: DICOM files lying anyhow below a studies folder, as series: an image's id is its SeriesInstanceUID.

Each series becomes a folder `.rayapp/series/<SeriesInstanceUID>` of links to its files, which is read like any folder
with one series. A link's name says of which state of which file it is, so that a file is parsed once, also over
restarts. What lies in a folder at the top that is an image itself (one series and nothing else) is left to that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from rayapp.datastore import folder_scan
from rayapp.datastore.interfaces import Info
from rayapp.datastore.revisions import delete

_TAGS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription"),
    *("StudyDate", "StudyTime", "PatientID"),
)
_NO_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "FID"})


class DicomTree:
    """The series of one studies folder. Scans run one at a time; paths and infos may be asked for meanwhile."""

    def __init__(self, studies: Path) -> None:
        self._studies = studies
        self._root = studies / ".rayapp" / "series"
        self._series: dict[str, Info | None] = {}

    def scan(self, whole_folders: Mapping[str, str]) -> dict[str, str]:
        """{SeriesInstanceUID: ""} of what lies there now; `whole_folders` are images at the top, by name."""
        linked = self._linked()
        found: dict[str, dict[str, Path]] = {}
        infos: dict[str, Info | None] = {}
        for path in self._files(whole_folders):
            name = _link_name(path)
            uid = linked.get(name)
            if uid is None:
                uid, info = _series_of(path)
                if uid is None:
                    continue
                infos.setdefault(uid, info)
            found.setdefault(uid, {})[name] = path
        for uid, links in found.items():
            self._link(uid, links)
        for uid in set(linked.values()) - found.keys():
            delete(self._root / uid)
        self._series = {uid: infos.get(uid) or self._series.get(uid) for uid in found}
        return dict.fromkeys(found, "")

    def holds(self, image_id: str) -> bool:
        """Whether it is a series of the last scan."""
        return image_id in self._series

    def path(self, image_id: str) -> Path:
        """The folder of the series' links."""
        return self._root / image_id

    def info(self, image_id: str) -> Info:
        """What viewers know a series by."""
        info = self._series.get(image_id)
        if info is None:
            file = next(self.path(image_id).iterdir(), None)
            info = (_series_of(file)[1] if file else None) or {}
        return info

    def is_one_series(self, name: str) -> bool:
        """Whether a folder at the top is an image itself: no folders in it, and its DICOM files of one series, which is
        not one of the tree's: a series that was an image by its UID stays one, however its files are moved."""
        linked = self._linked()
        uids: set[str] = set()
        for path in sorted((self._studies / name).iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                return False
            uid = linked.get(_link_name(path)) or _series_of(path)[0]
            if uid is not None:
                uids.add(uid)
            if len(uids) > 1 or (uid is not None and self.path(uid).exists()):
                return False
        return True

    def _files(self, whole_folders: Mapping[str, str]) -> Iterator[Path]:
        """The files that may be DICOM: not hidden, of no other known format, not in the images at the top."""
        for where, folders, names in os.walk(self._studies):
            top = where == str(self._studies)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not (top and (name == folder_scan.LABELS or name in whole_folders))
            )
            for name in sorted(names):
                if not name.startswith(".") and folder_scan.split_name(name) is None and not name.endswith(".json"):
                    yield Path(where, name)

    def _linked(self) -> dict[str, str]:
        """{link's name: series} of the links there are."""
        if not self._root.is_dir():
            return {}
        return {link.name: series.name for series in self._root.iterdir() for link in series.iterdir()}

    def _link(self, uid: str, links: Mapping[str, Path]) -> None:
        home = self._root / uid
        home.mkdir(parents=True, exist_ok=True)
        there = {link.name for link in home.iterdir()}
        for name in there - links.keys():
            (home / name).unlink()
        for name in links.keys() - there:
            (home / name).symlink_to(links[name])


def _link_name(path: Path) -> str:
    """Different for each file, and for each state of it; "" for one that went away, or leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return ""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return f"{digest}-{status.st_mtime_ns:x}-{status.st_size:x}.dcm"


def _series_of(path: Path) -> tuple[str | None, Info | None]:
    """The series that an image file belongs to, and what viewers want to know of it; None for other files."""
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None, None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, "Rows"])
    except (OSError, InvalidDicomError, ValueError, KeyError, AttributeError, EOFError):
        return None, None
    uid = str(header.get("SeriesInstanceUID", ""))
    if "Rows" not in header or header.get("Modality") in _NO_IMAGES or not folder_scan.is_valid_name(uid, "image"):
        return None, None
    return uid, {tag: str(header.get(tag) or "UNK") for tag in _TAGS}
