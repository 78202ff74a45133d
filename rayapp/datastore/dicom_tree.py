"""DicomTree: DICOM files nested at any depth below a studies folder, as series; an image's id is its SeriesInstanceUID.

Each series becomes a folder `.rayapp/series/<SeriesInstanceUID>` of symbolic links to its files, read like any folder
with one series. A link's name encodes the file's path, size and modification time, so that each state of a file is
parsed once, also across restarts. A top-level folder that is an image itself (exactly one series) is left out.
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
    """The series of one studies folder. One scan at a time; paths and infos may be read meanwhile."""

    def __init__(self, studies: Path) -> None:
        self._studies = studies
        self._root = studies / ".rayapp" / "series"
        self._series: dict[str, Info | None] = {}

    def scan(self, image_folders: Mapping[str, str]) -> dict[str, str]:
        """Find the series now in the folder and update their links.

        Args:
            image_folders: top-level folders that are images themselves, by name; they are skipped.

        Returns:
            `{SeriesInstanceUID: ""}`, the empty extension standing for a folder.
        """
        linked = self._linked()
        series: dict[str, dict[str, Path]] = {}
        infos: dict[str, Info | None] = {}
        for path in self._files(image_folders):
            name = _link_name(path)
            uid = linked.get(name)
            if uid is None:
                uid, info = _series_of(path)
                if uid is None:
                    continue
                infos.setdefault(uid, info)
            series.setdefault(uid, {})[name] = path
        for uid, links in series.items():
            self._link(uid, links)
        for uid in set(linked.values()) - series.keys():
            delete(self._root / uid)
        self._series = {uid: infos.get(uid) or self._series.get(uid) for uid in series}
        return dict.fromkeys(series, "")

    def holds(self, image_id: str) -> bool:
        """True if the last scan found a series of this id."""
        return image_id in self._series

    def path(self, image_id: str) -> Path:
        """The folder with the series' links."""
        return self._root / image_id

    def info(self, image_id: str) -> Info:
        """DICOM attributes that viewers identify a series by (UIDs, modality, description, date, patient ID)."""
        info = self._series.get(image_id)
        if info is None:
            file = next(self.path(image_id).iterdir(), None)
            info = (_series_of(file)[1] if file else None) or {}
        return info

    def is_one_series(self, name: str) -> bool:
        """True if a top-level folder is an image itself: it has no subfolders and its DICOM files form one series.

        False if that series is already one of the tree's: a series once known by its UID keeps that id, however its
        files are moved.
        """
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

    def _files(self, image_folders: Mapping[str, str]) -> Iterator[Path]:
        """Candidate DICOM files: not hidden, without the extension of another format, outside the top-level image
        folders.
        """
        for where, folders, names in os.walk(self._studies):
            top = where == str(self._studies)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not (top and (name == folder_scan.LABELS or name in image_folders))
            )
            for name in sorted(names):
                if not name.startswith(".") and folder_scan.split_name(name) is None and not name.endswith(".json"):
                    yield Path(where, name)

    def _linked(self) -> dict[str, str]:
        """{link name: SeriesInstanceUID} of the existing links."""
        if not self._root.is_dir():
            return {}
        return {link.name: series.name for series in self._root.iterdir() for link in series.iterdir()}

    def _link(self, uid: str, links: Mapping[str, Path]) -> None:
        folder = self._root / uid
        folder.mkdir(parents=True, exist_ok=True)
        existing = {link.name for link in folder.iterdir()}
        for name in existing - links.keys():
            (folder / name).unlink()
        for name in links.keys() - existing:
            (folder / name).symlink_to(links[name])


def _link_name(path: Path) -> str:
    """A name that is unique to the file and its present state; "" for a file that is gone or a dangling link."""
    try:
        status = path.stat()
    except OSError:
        return ""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return f"{digest}-{status.st_mtime_ns:x}-{status.st_size:x}.dcm"


def _series_of(path: Path) -> tuple[str | None, Info | None]:
    """SeriesInstanceUID and info of a DICOM image file; (None, None) for any other file."""
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
