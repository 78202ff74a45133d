"""ImageFiles: recognises when an image's file was replaced by another image under the same name.

Size and modification time of each file are compared with those that were recorded. If only the time differs, as after a
touch or a second copy, a digest of samples tells whether the content is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore import folder_scan
from rayapp.datastore.image_source import ImageSource
from rayapp.datastore.index import Index
from rayapp.datastore.revisions import FileStamp, delete

BLOCK = 4096
"""Bytes of a sample."""
SAMPLES = 16
"""Samples of a file that is not compressed, evenly spaced. The end of a compressed one has a checksum of all of it."""
READERS = 4
"""Threads that read samples."""
MAX_NEW = 20_000
"""Maximum number of files that one look reads for the first time; the others wait for the next one."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Size and modification time of a file or DICOM folder, and the digest of its samples."""

    stamp: FileStamp
    digest: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """Result of a look at the files.

    Attributes:
        same: fingerprints, by image id, of files that are new here or were only touched.
        replaced: fingerprints of files that now hold another image.
        waits: True if a file was still being written, or was not read yet.
    """

    same: dict[str, Fingerprint]
    replaced: dict[str, Fingerprint]
    waits: bool


class ImageFiles:
    """Looks at the files of a studies folder's images; images of an archive are compared by `ArchiveSource`."""

    def __init__(self, index: Index, source: ImageSource, settle: float) -> None:
        """Prepare it.

        Args:
            index: the index, which records the fingerprints.
            source: the studies folder's images.
            settle: seconds for which a file must be unchanged to count as complete.
        """
        self._index = index
        self._source = source
        self._settle = settle

    def look(self, images: Mapping[str, str]) -> Look:
        """Compare the files of the images ({id: extension}) with their recorded fingerprints."""
        if self._source.keeps_ids():
            return Look(same={}, replaced={}, waits=False)
        with self._index.reader() as db:
            known = {
                image_id: Fingerprint(stamp=FileStamp(size=size, mtime_ns=mtime_ns), digest=digest)
                for image_id, size, mtime_ns, digest in db.execute("SELECT * FROM image_file")
            }
        paths = {image_id: self._source.path(image_id, ext) for image_id, ext in images.items()}
        new = [image_id for image_id in images if image_id not in known]
        changed = {i: path for i, path in paths.items() if i in known and FileStamp.of(path) != known[i].stamp}
        complete = folder_scan.settled(changed, self._settle)
        found = self.fingerprints({i: paths[i] for i in (*new[:MAX_NEW], *complete)})
        replaced = {i: seen for i, seen in found.items() if i in known and seen.digest != known[i].digest}
        return Look(
            same={i: seen for i, seen in found.items() if i not in replaced},
            replaced=replaced,
            waits=len(new) > MAX_NEW or len(complete) < len(changed),
        )

    def fingerprints(self, paths: Mapping[str, Path]) -> dict[str, Fingerprint]:
        """Fingerprints of the files at these paths, without those that cannot be read or are being written."""
        with ThreadPoolExecutor(READERS) as pool:
            found = zip(paths, pool.map(fingerprint, paths.values()), strict=True)
            return {image_id: seen for image_id, seen in found if seen is not None}


def fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint of a file or folder; None if it cannot be read or changes meanwhile."""
    before = FileStamp.of(path)
    if before is None or not (path.is_file() or path.is_dir()):
        return None
    try:
        digest = _of_folder(path) if path.is_dir() else _of_file(path, before.size)
    except OSError:
        return None
    return Fingerprint(stamp=before, digest=digest) if FileStamp.of(path) == before else None


def _of_file(path: Path, size: int) -> str:
    end = max(0, size - BLOCK)
    places = {end} if path.name.endswith(".gz") else {end * number // (SAMPLES - 1) for number in range(SAMPLES)}
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        for place in sorted(places):
            digest.update(os.pread(file.fileno(), BLOCK, place))
    return digest.hexdigest()


def _of_folder(path: Path) -> str:
    """The digest of a folder: its files' names and sizes, and the beginning of the first file.

    For links to the files of a series, which is identified by its UID, only the sizes count, since the files may be
    moved.
    """
    with os.scandir(path) as entries:
        files = sorted(
            ("" if entry.is_symlink() else entry.name, entry.stat().st_size)
            for entry in entries
            if not entry.name.startswith(".") and entry.is_file()
        )
    digest = hashlib.sha256(json.dumps(files).encode("utf-8", "surrogateescape"))
    if files and files[0][0]:
        with (path / files[0][0]).open("rb") as file:
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def recorded(db: sqlite3.Connection, image_id: str) -> str | None:
    """The digest of the image's file as last recorded; None if it never was."""
    row = db.execute("SELECT digest FROM image_file WHERE image_id = ?", (image_id,)).fetchone()
    return None if row is None else str(row[0])


def is_as_recorded(db: sqlite3.Connection, image_id: str, path: Path) -> bool:
    """False if another program has put another file at the path since it was last recorded."""
    row = db.execute("SELECT size, mtime_ns, digest FROM image_file WHERE image_id = ?", (image_id,)).fetchone()
    if row is None or FileStamp.of(path) in (None, FileStamp(size=row[0], mtime_ns=row[1])):
        return True
    seen = fingerprint(path)
    return seen is not None and seen.digest == row[2]


def forget_file(db: sqlite3.Connection, image_id: str) -> None:
    """Delete what was recorded of a removed image's file, unless another image has the name by now."""
    db.execute(
        "DELETE FROM image_file WHERE image_id = :id AND NOT EXISTS (SELECT 1 FROM image WHERE id = :id)",
        {"id": image_id},
    )


def record(db: sqlite3.Connection, image_id: str, seen: Fingerprint) -> None:
    """Record the fingerprint of the image's file."""
    db.execute(
        "INSERT OR REPLACE INTO image_file VALUES(?, ?, ?, ?)",
        (image_id, seen.stamp.size, seen.stamp.mtime_ns, seen.digest),
    )


def delete_maps(hidden: Path, image_id: str) -> None:
    """Delete the uncertainty maps of an image that was replaced or removed; `hidden` is the folder `.rayapp`."""
    for method in (hidden / "uncertainty").glob("*"):
        delete(method / f"{image_id}.nii.gz")
