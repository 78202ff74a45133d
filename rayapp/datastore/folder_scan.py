"""Reading a studies folder as other programs fill it: which entries are images and labels, and whether a file is
complete.

Images lie at the top level: files with a known extension, headers with their voxels in another file beside them, and
subfolders that hold DICOM files (extension ""). Labels lie under `labels/<tag>/`. Hidden names and everything else are
ignored. An entry that cannot be served is left out, with the reason, and does not keep others from being read; entries
that could block when opened (a pipe, a socket, a device) are not opened.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]

from rayapp.datastore.foreign_formats import pointer, why_not_read
from rayapp.datastore.image_names import id_of, is_unicode, is_valid_name, label_name
from rayapp.datastore.revisions import FileStamp
from rayapp.errors import Unreadable
from rayapp.imaging.detached import DETACHED
from rayapp.imaging.reader import data_file

SINGLE_EXTS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Single-file formats, in which images can be uploaded and labels kept."""
IMAGE_EXTS = (*SINGLE_EXTS, *DETACHED)
"""Formats of images; of several files with one id, the first in this order is served."""
VOXEL_EXTS = (".img", ".img.gz")
"""Voxel files whose header is another file with the same stem."""
PROBED = 8
"""Number of files of a subfolder that are inspected before it is ruled out as a DICOM series."""
LABELS = "labels"
RESTING_S = 5.0
"""Seconds without a change after which an empty file counts as a failed copy instead of one in progress."""
EMPTY = "it is empty: copy it again"
NOT_REGULAR = "it is not a regular file (a pipe, a socket or a device)"
NO_HEADER = "its header, the .hdr, is not beside it: copy it too"
TWO_FILES = "a label must be in one file: save it as .nii.gz or .nrrd"
NOT_UNICODE = "its name is not UTF-8: rename it"
_REASONS = {
    errno.ENOENT: "it is a link to a file that is not there",
    errno.ELOOP: "it is a link to itself",
    errno.EACCES: "this server may not read it: change its permissions",
    errno.EPERM: "this server may not read it: change its permissions",
}
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "gpfs", "afs")

K = TypeVar("K", bound=Hashable)


class LeftOut(Exception):
    """An entry cannot be served; the text gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of one look at the top of a folder.

    Attributes:
        images: extension, in its own case, by image id.
        stems: file name without extension of each image whose id does not give it back.
        problems: reason why an entry is left out, by path.
    """

    images: dict[str, str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)


def why(error: OSError) -> str:
    """The reason to leave an entry out, from a file system error."""
    return _REASONS.get(error.errno or 0) or f"it cannot be read: {error.strerror or error}"


def split_name(name: str) -> tuple[str, str] | None:
    """(stem, extension) of a file name with a known extension, in whatever case; None for any other.

    `x.seg.nrrd` is split into stem `x.seg` and extension `.nrrd`; only an index entry can say otherwise.
    """
    lower = name.lower()
    for ext in IMAGE_EXTS:
        if lower.endswith(ext) and len(name) > len(ext) and not name.startswith("."):
            return name[: -len(ext)], name[-len(ext) :]
    return None


def images(studies: Path, indexed: Mapping[str, str]) -> Scan:
    """The images at the top of the folder.

    Args:
        studies: the studies folder.
        indexed: {id: extension} of the images already indexed. Their files are not examined again, nor their folders
            probed. Of several files with one id the indexed one is chosen, else the first in the order of `IMAGE_EXTS`;
            the others are left out.
    """
    known = {label_name(image_id, ext): (image_id, ext) for image_id, ext in indexed.items()}
    scan = Scan()
    names: dict[str, dict[str, str]] = {}
    with os.scandir(studies) as entries:
        for entry in entries:
            if entry.name in known:
                image_id, ext = known[entry.name]
            elif entry.name.startswith("."):
                continue
            else:
                try:
                    split = _image(entry)
                except FileNotFoundError:
                    if entry.is_symlink():
                        scan.problems[Path(entry.path)] = _REASONS[errno.ENOENT]
                    continue
                except (OSError, LeftOut) as error:
                    scan.problems[Path(entry.path)] = why(error) if isinstance(error, OSError) else str(error)
                    continue
                if split is None:
                    continue
                image_id, ext = id_of(split[0]), split[1]
            names.setdefault(image_id, {})[ext] = entry.name
    for image_id, by_ext in names.items():
        old = indexed.get(image_id)
        ext = old if old in by_ext and old is not None else min(by_ext, key=_rank)
        scan.images[image_id] = ext
        stem = by_ext[ext][: len(by_ext[ext]) - len(ext)]
        if label_name(image_id, "") != stem:
            scan.stems[image_id] = stem
        for other in by_ext.values():
            if other != by_ext[ext]:
                scan.problems[studies / other] = f"it would be the same image as {by_ext[ext]}: rename one of them"
    return scan


def _rank(ext: str) -> tuple[int, str]:
    return (*IMAGE_EXTS, "").index(ext.lower()), ext


def _image(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    """(stem, extension) of an entry that is an image; None for any other. Raises LeftOut, OSError.

    A folder whose name is not Unicode is left to the tree of DICOM series, whose ids are UIDs.
    """
    split = split_name(entry.name)
    if split is None and entry.is_symlink() and not Path(entry.path).exists():
        return None  # whatever it was to be, it has no name of an image
    if entry.is_dir():
        if entry.name == LABELS or not is_unicode(entry.name) or not _holds_dicom(entry.path):
            return None
        return entry.name, ""
    if split is None:
        if reason := why_not_read(entry.name):
            raise LeftOut(reason)
        if entry.name.lower().endswith(VOXEL_EXTS) and not _header_beside(entry):
            raise LeftOut(NO_HEADER)
        return None
    status = os.stat(entry.path)  # noqa: PTH116 -- a DirEntry's path, thousands of times
    check_file(status, entry.path)
    if not is_unicode(entry.name):
        raise LeftOut(NOT_UNICODE)
    if split[1].lower() in DETACHED and status.st_size:
        _check_voxels(Path(entry.path))
    return split


def _header_beside(entry: os.DirEntry[str]) -> bool:
    """True if the `.hdr` of an `.img` is there, or was at an earlier check."""
    stem = entry.path[: entry.path.lower().rindex(".img")]
    return any(os.path.lexists(stem + ext) for ext in (".hdr", ".HDR"))


def _check_voxels(header: Path) -> None:
    """Check that a header is valid and that the file with its voxels is beside it. Raises LeftOut, OSError."""
    try:
        voxels = data_file(header)
    except Unreadable as error:
        raise LeftOut(error.detail) from None
    if voxels is not None:
        check_file(voxels.stat(), voxels)


def voxels_of(path: Path) -> Path | None:
    """The file with the voxels of a detached header; None for any other file, or while the voxel file is missing."""
    try:
        return data_file(path)
    except Unreadable:
        return None


def check_file(status: os.stat_result, path: str | Path) -> None:
    """Check that a file can be read without blocking, and is the file itself. Raises LeftOut, OSError."""
    if not stat.S_ISREG(status.st_mode):
        raise LeftOut(NOT_REGULAR)
    if not os.access(path, os.R_OK):
        raise LeftOut(_REASONS[errno.EACCES])
    if status.st_size == 0 and _is_resting(status):
        raise LeftOut(EMPTY)
    if reason := pointer(path, status.st_size):
        raise LeftOut(reason)


def _is_resting(status: os.stat_result) -> bool:
    return not 0 <= time.time() - status.st_mtime < RESTING_S


def _holds_dicom(folder: str) -> bool:
    probed = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not _is_file(entry):
                continue
            if _is_dicom(entry.path) or (entry.name.lower().endswith(".dcm") and not entry.stat().st_size):
                return True  # an empty one is being copied
            probed += 1
            if probed == PROBED:
                break
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """True for a regular file or a link to one; False if this cannot be determined."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- a DirEntry's path, thousands of times
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def tags(labels: Path) -> list[str]:
    """The tags that have a folder, in ascending order."""
    with os.scandir(labels) as entries:
        return sorted(entry.name for entry in entries if is_valid_name(entry.name, "tag") and _is_dir(entry))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def files(folder: Path) -> tuple[dict[str, FileStamp], dict[Path, str]]:
    """The files of a tag's folder with their stamps, and those left out with the reason; empty if there is no
    folder.
    """
    stamps: dict[str, FileStamp] = {}
    problems: dict[Path, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not (split_name(entry.name) or _is_file(entry)):
                    continue
                try:
                    if not is_unicode(entry.name):
                        raise LeftOut(NOT_UNICODE)
                    if entry.name.lower().endswith(DETACHED):
                        raise LeftOut(TWO_FILES)
                    status = os.stat(entry.path)  # noqa: PTH116 -- a DirEntry's path, thousands of times
                    check_file(status, entry.path)
                    stamps[entry.name] = FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns)
                except (OSError, LeftOut) as error:
                    problems[Path(entry.path)] = why(error) if isinstance(error, OSError) else str(error)
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        problems[folder] = why(error)
    return stamps, problems


def rests(path: Path) -> bool:
    """True if the file, or the newest one of the folder, has not changed for `RESTING_S` seconds."""
    signature = _signature(path)
    return signature is None or not 0 <= time.time() - signature.mtime_ns / 1e9 < RESTING_S


def settled(paths: Mapping[K, Path], settle: float) -> set[K]:
    """Keys of the files and folders that look complete: not empty, and unchanged for `settle` seconds.

    Sleeps `settle` seconds if any was modified more recently.
    """
    before = {key: _signature(path) for key, path in paths.items()}
    horizon = time.time_ns() - settle * 1e9
    young = [key for key, signature in before.items() if signature and signature.mtime_ns > horizon]
    if young:
        time.sleep(settle)
    changed = {key for key in young if _signature(paths[key]) != before[key]}
    return {key for key, signature in before.items() if signature and signature.size and key not in changed}


def _signature(path: Path) -> FileStamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 -- thousands of times
        if stat.S_ISDIR(status.st_mode):
            return _sum(FileStamp.of(file) for file in path.iterdir())
        stamp = FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns)
        if status.st_size and path.name.lower().endswith(DETACHED):
            voxels = voxels_of(path)
            return None if voxels is None else _both(stamp, FileStamp.of(voxels))
        return stamp
    except OSError:
        return None


def _both(header: FileStamp, voxels: FileStamp | None) -> FileStamp | None:
    """The stamp of an image in two files; one without voxels yet counts as empty."""
    if voxels is None:
        return None
    size = header.size + voxels.size if voxels.size else 0
    return FileStamp(size=size, mtime_ns=max(header.mtime_ns, voxels.mtime_ns))


def _sum(stamps: Iterable[FileStamp | None]) -> FileStamp:
    present = [stamp for stamp in stamps if stamp is not None]
    return FileStamp(size=sum(s.size for s in present), mtime_ns=max((s.mtime_ns for s in present), default=0))


def is_remote(path: Path) -> bool:
    """True if the folder is on a network file system, where the kernel does not report changes made by other hosts."""
    mounts = {Path(m.mountpoint): m.fstype for m in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")
    return kind.startswith(_REMOTE)
