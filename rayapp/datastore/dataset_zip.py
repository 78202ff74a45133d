"""The dataset zip: `image/…` and `label/…` of every image with a final label, and `metadata.json`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rayapp.datastore.folder_scan import voxels_of
from rayapp.datastore.interfaces import ImageRecord


def write_archive(target: Path, pairs: Iterable[tuple[ImageRecord, str, Path]], metadata: str) -> int:
    """Write the zip. Compressed files are stored as they are; images whose files have disappeared are skipped.

    Args:
        target: path of the zip.
        pairs: (image, name of its label file, path of the label's revision).
        metadata: content of `metadata.json`.

    Returns:
        The number of pairs written.
    """
    written = 0
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        for image, label_name, label in pairs:
            if not image.path.exists():
                continue
            for file, name in _files(image):
                _add(archive, file, f"image/{name}")
            _add(archive, label, f"label/{label_name}")
            written += 1
        archive.writestr("metadata.json", metadata, zipfile.ZIP_DEFLATED)
    return written


def _files(image: ImageRecord) -> Iterator[tuple[Path, str]]:
    """An image's files with their names in the zip: for a folder its files, for a detached header its voxel file
    too.
    """
    if image.path.is_dir():
        yield from ((file, f"{image.path.name}/{file.name}") for file in sorted(image.path.iterdir()))
        return
    yield image.path, image.path.name
    if (voxels := voxels_of(image.path)) is not None:
        yield voxels, voxels.name


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    archive.write(file, name, zipfile.ZIP_STORED if file.suffix == ".gz" else zipfile.ZIP_DEFLATED, compresslevel=1)
