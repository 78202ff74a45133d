"""Reading a studies folder as other programs fill it: which names are images and labels, and when a file is complete.

Images lie at the top level: files with a known extension, and subfolders that hold DICOM files (id = folder name,
extension ""). Labels lie under `labels/<tag>/`. Hidden names and everything else are ignored.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]

from rayapp.datastore.revisions import FileStamp
from rayapp.errors import BadRequest
from rayapp.protocol import checked_name

IMAGE_EXTS = (".nii.gz", ".nii", ".nrrd")
PROBED = 8
"""Files of a subfolder that are inspected before it is ruled out as a DICOM series."""
LABELS = "labels"
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "gpfs", "afs")

K = TypeVar("K", bound=Hashable)


def split_name(name: str) -> tuple[str, str] | None:
    """(id, extension) of a file name with a known extension; None for any other.

    `x.seg.nrrd` is split into id `x.seg` and extension `.nrrd`; only an index entry can say otherwise.
    """
    for ext in IMAGE_EXTS:
        if name.endswith(ext) and len(name) > len(ext) and not name.startswith("."):
            return name[: -len(ext)], ext
    return None


def is_valid_name(name: str, what: str) -> bool:
    """True if the name can serve as an id or tag."""
    try:
        checked_name(name, what)
    except BadRequest:
        return False
    return True


def images(studies: Path, indexed: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The images at the top of the folder.

    Args:
        studies: the studies folder.
        indexed: {id: extension} of the images already indexed. Their names are not validated again, nor their folders
            probed. Of several files with one id the indexed one is chosen, else the first in the order of `IMAGE_EXTS`.

    Returns:
        ({id: extension}, number of images skipped because their names cannot serve as ids).
    """
    names = {image_id + ext: image_id for image_id, ext in indexed.items()}
    extensions: dict[str, str] = {}
    refused = 0
    with os.scandir(studies) as entries:
        for entry in entries:
            if entry.name in names:
                extensions[names[entry.name]] = entry.name[len(names[entry.name]) :]
                continue
            split = _image(entry)
            if split is None:
                continue
            image_id, ext = split
            if not is_valid_name(image_id, "image"):
                refused += 1
            elif image_id not in indexed and _rank(ext) < _rank(extensions.get(image_id)):
                extensions[image_id] = ext
            elif image_id in indexed and image_id not in extensions:
                extensions[image_id] = ext  # another format has replaced the indexed file, unless that one follows
    return extensions, refused


def _rank(ext: str | None) -> int:
    order: tuple[str | None, ...] = (*IMAGE_EXTS, "", None)
    return order.index(ext)


def _image(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    if entry.name.startswith("."):
        return None
    if entry.is_dir():
        return (entry.name, "") if entry.name != LABELS and _holds_dicom(entry.path) else None
    return split_name(entry.name)


def _holds_dicom(folder: str) -> bool:
    probed = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file():
                continue
            if entry.name.lower().endswith(".dcm") or _is_dicom(entry.path):
                return True
            probed += 1
            if probed == PROBED:
                break
    return False


def _is_dicom(path: str) -> bool:
    with open(path, "rb") as file:  # noqa: PTH123 -- a DirEntry's path, thousands of times
        return file.read(132)[128:] == b"DICM"


def tags(labels: Path) -> list[str]:
    """The tags that have a folder, in ascending order."""
    with os.scandir(labels) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and is_valid_name(entry.name, "tag"))


def files(folder: Path) -> dict[str, FileStamp]:
    """The files of a tag's folder with their stamps; empty if the folder does not exist."""
    stamps = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    status = entry.stat()
                    stamps[entry.name] = FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns)
    except FileNotFoundError:
        return {}
    return stamps


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
        return FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns)
    except OSError:
        return None


def _sum(stamps: Iterable[FileStamp | None]) -> FileStamp:
    present = [stamp for stamp in stamps if stamp is not None]
    return FileStamp(size=sum(s.size for s in present), mtime_ns=max((s.mtime_ns for s in present), default=0))


def is_remote(path: Path) -> bool:
    """True if the folder is on a network file system, where the kernel does not report changes made by other hosts."""
    mounts = {Path(m.mountpoint): m.fstype for m in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")
    return kind.startswith(_REMOTE)
