"""DicomTree: DICOM files nested at any depth below a studies folder, as series; an image's id is its SeriesInstanceUID.

A series that holds several volumes becomes one image per part, whose id names the part: `<SeriesInstanceUID>_echo-2`.
Each image is a folder `.rayapp/series/<id>` of symbolic links to its files, read like any folder with one series. A
link's name encodes the file's path, size and modification time, so that each state of a file is parsed once, even
across restarts. A top-level folder that is an image itself (exactly one series) is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from rayapp.datastore import folder_scan
from rayapp.datastore.image_names import is_valid_name
from rayapp.datastore.interfaces import Info
from rayapp.datastore.revisions import delete
from rayapp.datastore.series_parts import described, image_ids, series_of
from rayapp.errors import Unreadable
from rayapp.imaging.dicom_kinds import check_deflated, check_syntax, is_dicom, is_image, kind_of, why_no_dicom
from rayapp.imaging.dicom_parts import TAGS, SliceKey, split

_DESCRIBING = (
    *("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription"),
    *("StudyDate", "StudyTime", "PatientID"),
)
_TAGS = [Tag(keyword) for keyword in (*_DESCRIBING, "SOPClassUID")] + list(TAGS)

_BELOW = "images in it are not served ({}): move or link them to the top of the studies folder"


class DicomTree:
    """The series of one studies folder. One scan at a time; paths and infos may be read meanwhile."""

    def __init__(self, studies: Path, links: Path | None = None) -> None:
        """Prepare it.

        Args:
            studies: the folder.
            links: the folder for the series' links; by default `.rayapp/series` in the studies folder.
        """
        self._studies = studies
        self._root = links or studies / ".rayapp" / "series"
        self._series: dict[str, Info | None] = {}
        self._others: dict[str, _Header] = {}
        self._below: Counter[Path] = Counter()
        self.problems: dict[Path, str] = {}
        """The reason why a file or folder below the studies folder was left out of the last scan, by path."""

    def scan(self, image_folders: Container[str]) -> dict[str, str]:
        """Find the series now in the folder and update their links.

        Args:
            image_folders: names of top-level folders that are images themselves; they are skipped.

        Returns:
            `{SeriesInstanceUID: ""}`, the empty extension standing for a folder.
        """
        linked = self._linked()
        series: dict[str, dict[str, Path]] = {}
        keys: dict[str, SliceKey | None] = {}
        infos: dict[str, Info | None] = {}
        problems: dict[Path, str] = {}
        others: dict[str, _Header] = {}
        accompanying: dict[Path, set[str]] = {}
        for path in self._files(image_folders, problems):
            try:
                name = _link_name(path)
            except FileNotFoundError as error:
                if path.is_symlink():
                    problems[path] = folder_scan.why(error)
                continue
            except OSError as error:
                problems[path] = folder_scan.why(error)
                continue
            except folder_scan.LeftOut as error:
                problems[path] = str(error)
                continue
            uid = series_of(linked[name]) if name in linked else None
            if uid is None:
                header = self._others.get(name) or _Header.of(path)
                if not header.series:
                    others[name] = header
                    if header.reason:
                        problems[path] = header.reason
                    elif header.kind:
                        accompanying.setdefault(self._top(path), set()).add(header.kind)
                    continue
                uid, keys[name] = header.series, header.key
                infos.setdefault(uid, header.info)
            series.setdefault(uid, {})[name] = path
        for top, count in self._below.items():
            problems.setdefault(top, _BELOW.format(count))
        served = {self._top(path) for links in series.values() for path in links.values()}
        for top in accompanying.keys() - served - {self._top(path) for path in problems}:
            kinds = ", ".join(sorted(accompanying[top]))
            problems[top] = f"it holds no DICOM images, only {kinds}: copy the images too"
        self._others, self.problems = others, problems
        images = self._parts(series, linked, keys)
        for image_id, links in images.items():
            self._link(image_id, links)
        for image_id in set(linked.values()) - images.keys():
            delete(self._root / image_id)
        self._series = {image_id: infos.get(series_of(image_id)) or self._series.get(image_id) for image_id in images}
        return dict.fromkeys(images, "")

    def _top(self, path: Path) -> Path:
        """The entry at the top of the studies folder that a file lies in, or is."""
        return self._studies / path.relative_to(self._studies).parts[0]

    def _parts(
        self,
        series: Mapping[str, Mapping[str, Path]],
        linked: Mapping[str, str],
        keys: Mapping[str, SliceKey | None],
    ) -> dict[str, dict[str, Path]]:
        """The links of each image, which is a series or one of its parts.

        An unchanged series stays as it is linked, and a part keeps the id under which its files were linked before,
        whatever was added to the series since.
        """
        before: dict[str, dict[str, str]] = {}
        for name, image_id in linked.items():
            before.setdefault(series_of(image_id), {})[name] = image_id
        images: dict[str, dict[str, Path]] = {}
        for uid, links in series.items():
            old = before.get(uid, {})
            if links.keys() == old.keys():
                for name, path in links.items():
                    images.setdefault(linked[name], {})[name] = path
                continue
            known = {name: keys[name] if name in keys else _key_of(path) for name, path in links.items()}
            parts = split(known)
            for part, image_id in image_ids(uid, parts, old).items():
                images[image_id] = {name: links[name] for name in parts[part]}
        return images

    def holds(self, image_id: str) -> bool:
        """True if the last scan found a series of this id."""
        return image_id in self._series

    def path(self, image_id: str) -> Path:
        """The folder with the series' links."""
        return self._root / image_id

    def info(self, image_id: str) -> Info:
        """DICOM attributes that viewers identify a series by (UIDs, modality, description, date, patient ID).

        Empty if the series is gone or none of its files can be read.
        """
        info = self._series.get(image_id)
        if info is None:
            with contextlib.suppress(FileNotFoundError):
                infos = (_Header.of(file).info for file in sorted(self.path(image_id).iterdir()))
                info = next(filter(None, infos), None)
        return described(info, image_id) if info else {}

    def is_one_series(self, name: str) -> bool:
        """True if a top-level folder is an image itself: it has no subfolders and its DICOM files form one volume.

        False if that series is already one of the tree's: a series once known by its UID keeps that id, however its
        files are moved.
        """
        linked = self._linked()
        known = {series_of(image_id) for image_id in linked.values()}
        uids: set[str] = set()
        keys: dict[Path, SliceKey | None] = {}
        images = False
        try:
            paths = sorted((self._studies / name).iterdir())
        except OSError:
            return False
        for path in paths:
            if path.name.startswith("."):
                continue
            try:
                if path.is_dir():
                    return False
                link = _link_name(path)
                if link in linked:
                    return False  # a series once known by its UID keeps that id
                header = _Header.of(path)
            except (OSError, folder_scan.LeftOut):
                return False
            images = images or bool(header.series or header.reason)
            if header.series:
                uids.add(header.series)
                keys[path] = header.key
            if len(uids) > 1 or header.series in known:
                return False
        return images and len(split(keys)) == 1

    def _files(self, image_folders: Container[str], problems: dict[Path, str]) -> Iterator[Path]:
        """Candidate DICOM files: not hidden, without the extension of another format, outside the top-level image
        folders. Folders that cannot be read are added to `problems`.
        """

        self._below.clear()

        def note(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                problems[Path(error.filename)] = folder_scan.why(error)

        for where, folders, names in os.walk(self._studies, onerror=note):
            top = where == str(self._studies)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not (top and (name == folder_scan.LABELS or name in image_folders))
            )
            for name in sorted(names):
                if folder_scan.split_name(name) is not None:
                    if not top:
                        self._below[self._top(Path(where))] += 1
                elif not name.startswith(".") and not name.endswith(".json"):
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


def _key_of(path: Path) -> SliceKey | None:
    """The key that distinguishes a DICOM file's slice within its series; None if the file cannot be read."""
    try:
        return SliceKey.of(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS)))
    except Exception:  # damaged files make the parser raise almost anything
        return None


def _link_name(path: Path) -> str:
    """A name unique to the file and its present state. Raises OSError; LeftOut if the file cannot be read safely."""
    status = path.stat()
    folder_scan.check_file(status, path)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return f"{digest}-{status.st_mtime_ns:x}-{status.st_size:x}.dcm"


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The parts of a file's header that place it in a series.

    Attributes:
        series: SeriesInstanceUID of an image; "" of any other file.
        info: the series' attributes.
        key: what distinguishes the file's slice within its series.
        reason: the reason why an image cannot be served; "" for one that can, and for what is no image.
        kind: of DICOM that is no image, its kind; "" for any other file.
    """

    series: str = ""
    info: Info | None = None
    key: SliceKey | None = None
    reason: str = ""
    kind: str = ""

    @classmethod
    def of(cls, path: Path) -> _Header:
        """Read a file's header."""
        try:
            if not is_dicom(path):
                return cls(reason=why_no_dicom(path))
            meta = read_file_meta_info(path)
            if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return cls()
            check_deflated(meta)  # before anything is decompressed
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            if header and not is_image(header):
                return cls(kind=kind_of(header))
            if "Rows" not in header:
                return cls(reason="" if header else "it is a damaged DICOM file: copy it again")
            check_syntax(header.file_meta)
            uid = str(header.get("SeriesInstanceUID") or "")
            info = {tag: str(header.get(tag) or "UNK") for tag in _DESCRIBING}
        except OSError as error:
            return cls(reason=folder_scan.why(error))
        except Unreadable as error:
            return cls(reason=error.detail)
        except Exception as error:  # damaged files make the parser raise almost anything
            return cls(reason=f"it is a damaged DICOM file ({type(error).__name__}): copy it again")
        if not is_valid_name(uid, "image"):
            return cls(reason="its SeriesInstanceUID is missing or not valid: without it no series can be told")
        return cls(series=uid, info=info, key=SliceKey.of(header))
