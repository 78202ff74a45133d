"""Foreign formats: files in a studies folder that look like images by their name or content, and are not read as such.

Each has a reason that says what to do; files that have nothing to do with images have none.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

_IMAGES = (
    ".nii",
    ".nii.gz",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".hdr",
    ".img",
    ".img.gz",
    ".dcm",
    ".mgz",
    ".mgh",
    ".mnc",
)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".z", ".zip", ".7z")
_PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_OTHERS = (
    *(".mgz", ".mgh", ".mnc", ".gipl", ".gipl.gz", ".vti", ".tif", ".tiff", ".brik", ".brik.gz", ".par"),
    *(".npy", ".npz", ".nifti", ".ima.gz"),
)
_REASONS = {
    "it is the rest of a copy or download that did not finish: copy it again": tuple(
        map("".join, product(_IMAGES, _PARTIAL))
    ),
    "it is compressed in a way that is not read: unpack it": tuple(
        ext for ext in map("".join, product(_IMAGES, _PACKED)) if ext not in _IMAGES
    ),
    "it is an archive: unpack it": _ARCHIVES,
    "its format is not read: save it as .nii.gz or .nrrd": _OTHERS,
}
_LARGEST_POINTER = 1024
_POINTERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself, with git lfs pull",
    b"/annex/objects/": "it is a pointer of git-annex: fetch the file itself, with git annex get or datalad get",
}
_COPY = re.compile(r"\.(nii|nrrd|mha)(\.gz)?[ (]", re.IGNORECASE)


def why_not_read(name: str) -> str | None:
    """The reason why a file of this name is not read; None if the name is not that of an image."""
    lower = name.lower()
    for reason, extensions in _REASONS.items():
        if lower.endswith(extensions):
            return reason
    return "its extension is not at its end: rename it" if _COPY.search(name) else None


def pointer(path: str | Path, size: int) -> str | None:
    """The reason to leave out a small text that stands for a large file; None for any other file. Raises OSError."""
    if not 0 < size <= _LARGEST_POINTER:
        return None
    with open(path, "rb") as file:  # noqa: PTH123 -- a DirEntry's path, often
        start = file.read(32)
    return next((reason for mark, reason in _POINTERS.items() if start.startswith(mark)), None)
