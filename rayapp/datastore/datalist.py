"""Data lists: a JSON file that names images in place, served as a studies folder beside it.

    {"training": [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}, {"image": ["t1.nii.gz", "t2.nii.gz"], "id": "p1"}],
     "testing": ["b.nii.gz", …]}

This is the layout of the Medical Segmentation Decathlon and MONAI; a bare list works too. Paths are relative to the
file. The listed files are neither moved nor written to: `list.json` is served from the folder `list.studies`, which
holds symbolic links to the images. An image of several files becomes one multi-channel NIfTI file there, rewritten when
one of its files changes. A label is copied in as a `final` label when its image is listed for the first time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.datastore.folder_scan import LABELS, split_name
from rayapp.errors import BadRequest, RayappError
from rayapp.geometry import same_grid
from rayapp.imaging.reader import read_volume
from rayapp.protocol import FINAL, checked_name

STUDIES = ".studies"
"""Suffix of the folder that a list is served from."""


@dataclass(frozen=True, kw_only=True)
class ListEntry:
    """One entry of the list: the image's file or files, its label or None, and its explicit id or None."""

    files: Sequence[Path]
    label: Path | None
    id: str | None


def open_datalist(path: Path, *, max_bytes: int) -> Path:
    """Create or update the studies folder that the list is served from. Images no longer listed are removed from it.

    Returns:
        The studies folder.

    Raises:
        BadRequest: naming the entry, if the list cannot be read, a file is missing, two entries have the same id, or
            the files of one image do not lie on one voxel grid or would take more than `max_bytes` in all.
    """
    entries = _entries(path)
    names = _ids(entries)
    folder = path.with_name(path.stem + STUDIES)
    (folder / LABELS / FINAL).mkdir(parents=True, exist_ok=True)
    listed = set()
    for name, entry in zip(names, entries, strict=True):
        target = _link(folder, name, entry) if len(entry.files) == 1 else _stacked(folder, name, entry, max_bytes)
        listed.add(target.name)
    for old in folder.iterdir():
        if old.name not in listed and (old.is_symlink() or (old.is_file() and split_name(old.name) is not None)):
            old.unlink()
    return folder


def _entries(path: Path) -> list[ListEntry]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path.name} cannot be read as JSON: {error}") from error
    lists = document.values() if isinstance(document, Mapping) else [document]
    entries = [_entry(path, item) for part in lists if isinstance(part, list) for item in part if _is_entry(item)]
    if not entries:
        raise BadRequest(
            f'{path.name} lists no images; write them as {{"training": [{{"image": "a.nii.gz", "label": …}}, …]}}'
        )
    return entries


def _is_entry(item: Any) -> bool:
    if isinstance(item, str):
        return split_name(Path(item).name) is not None
    return isinstance(item, Mapping) and "image" in item


def _entry(path: Path, item: Any) -> ListEntry:
    fields = item if isinstance(item, Mapping) else {"image": item}
    image = fields["image"]
    names = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) for name in names):
        raise BadRequest(f"{path.name}: an image must be a path or a list of paths, not {str(image)[:80]!r}")
    label = fields.get("label")
    label = label if isinstance(label, str) and label else None
    for name in [*names, *([label] if label else [])]:
        if not (path.parent / name).exists():
            raise BadRequest(f"{path.name} names {name!r}, which does not exist: paths are relative to the list")
    explicit = fields.get("id")
    return ListEntry(
        files=[(path.parent / name).resolve() for name in names],
        label=None if label is None else (path.parent / label).resolve(),
        id=None if explicit is None else checked_name(str(explicit), "image"),
    )


def _ids(entries: Sequence[ListEntry]) -> list[str]:
    """The entries' ids: the explicit one, else the file's name or, for several files, their folder's name.

    Where that is not unique, the folder's and the file's name joined.
    """
    short = [entry.id or (_stem(entry.files[0]) if len(entry.files) == 1 else _parent(entry)) for entry in entries]
    count = Counter(short)
    ids = []
    for name, entry in zip(short, entries, strict=True):
        long = f"{_parent(entry)}_{_stem(entry.files[0])}"
        ids.append(checked_name(name if count[name] == 1 or entry.id else long, "image"))
    duplicates = [name for name, number in Counter(ids).items() if number > 1]
    if duplicates:
        raise BadRequest(f'two images of the list would have the id {duplicates[0]!r}: give each an "id" of its own')
    return ids


def _parent(entry: ListEntry) -> str:
    return entry.files[0].parent.name


def _stem(path: Path) -> str:
    split = None if path.is_dir() else split_name(path.name)
    return path.name if split is None else split[0]


def _link(folder: Path, name: str, entry: ListEntry) -> Path:
    source = entry.files[0]
    split = None if source.is_dir() else split_name(source.name)
    if split is None and not source.is_dir():
        raise BadRequest(f"{source.name!r} is not a supported image: use NIfTI, NRRD or a folder of DICOM files")
    target = folder / (name + (split[1] if split else ""))
    if not target.is_symlink():
        _import_label(folder, name, entry)
    if not target.is_symlink() or target.readlink() != source:
        target.unlink(missing_ok=True)
        target.symlink_to(source)
    return target


def _stacked(folder: Path, name: str, entry: ListEntry, max_bytes: int) -> Path:
    """The files' channels stacked in one NIfTI file; its modification time is that of the newest of them."""
    import nibabel

    target = folder / f"{name}.nii"
    newest = max(file.stat().st_mtime_ns for file in entry.files)
    if target.exists() and target.stat().st_mtime_ns == newest:
        return target
    if not target.exists():
        _import_label(folder, name, entry)
    try:
        volumes = [read_volume(file, max_bytes=max_bytes // len(entry.files)) for file in entry.files]
    except RayappError as error:
        raise BadRequest(f"the files of image {name!r} cannot be stacked: {error.detail}") from error
    first = volumes[0]
    if not all(same_grid(first.shape, first.affine, other.shape, other.affine) for other in volumes[1:]):
        raise BadRequest(
            f"the files of image {name!r} cannot be stacked: they do not lie on one voxel grid; resample them first"
        )
    array = np.moveaxis(np.concatenate([volume.array for volume in volumes]), 0, -1)
    if array.dtype.kind != "f" and array.dtype.itemsize > 4:
        array = array.astype(np.float64)
    staged = folder / f".{name}.nii"
    nibabel.Nifti1Image(array, first.affine).to_filename(staged)
    os.utime(staged, ns=(newest, newest))
    staged.replace(target)
    return target


def _import_label(folder: Path, name: str, entry: ListEntry) -> None:
    """Copy the entry's label in as a final label, unless there is one already."""
    if entry.label is None:
        return
    split = split_name(entry.label.name)
    target = folder / LABELS / FINAL / (name + (split[1] if split else "".join(entry.label.suffixes)))
    if not target.exists():
        shutil.copyfile(entry.label, target)
