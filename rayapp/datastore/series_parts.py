"""Images of a DICOM series: one with the SeriesInstanceUID as its id, or one for each part, as `<UID>_echo-2`.

Ids are permanent: a part keeps the id under which most of its slices were known before, whatever has been added to the
series since.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import chain, count
from pathlib import Path

from rayapp.datastore.image_names import is_valid_name
from rayapp.datastore.interfaces import Info
from rayapp.files.durable import make_folder, replacing, sync
from rayapp.imaging.dicom_parts import SliceKey, split

SEPARATOR = "_"
"""Separates the SeriesInstanceUID and the name of a part in an image's id; no UID contains it."""
PARTS = "parts"
"""Folder in `.rayapp` with the files of `SeriesImages`."""
SAMPLES = 8
"""Instances by which an image is known again."""
SINGLE, SEVERAL = ".image.json", ".parts.json"
"""Extensions of the files of `SeriesImages`: of a series that is one image under its own UID, and of any other."""


def series_of(image_id: str) -> str:
    """The SeriesInstanceUID in an image's id."""
    return image_id.partition(SEPARATOR)[0]


def part_of(image_id: str) -> str:
    """The name of the part in an image's id; "" if the id is the SeriesInstanceUID alone."""
    return image_id.partition(SEPARATOR)[2]


def described(info: Info, image_id: str) -> Info:
    """A series' attributes as those of an image of it: a part's name is added to the description."""
    part = part_of(image_id)
    return {**info, "SeriesDescription": f"{info['SeriesDescription']} {part}"} if part else dict(info)


def image_ids(series: str, parts: Mapping[str, Collection[str]], before: Mapping[str, str]) -> dict[str, str]:
    """The image id of each part of a series: the one under which most of its slices were known, else a new one.

    Args:
        series: SeriesInstanceUID.
        parts: names of each part's slices, by the part's name.
        before: image id under which a slice was known, by the slice's name.
    """
    shared = Counter((part, before[name]) for part, names in parts.items() for name in names if name in before)
    ids: dict[str, str] = {}
    for (part, image_id), _ in shared.most_common():
        if part not in ids and image_id not in ids.values():
            ids[part] = image_id
    for part in parts.keys() - ids.keys():
        first = f"{series}{SEPARATOR}{part}" if part else series
        numbered = (f"{series}{SEPARATOR}{part or 'part'}-{number}" for number in count(2))
        ids[part] = next(image_id for image_id in chain([first], numbered) if image_id not in ids.values())
    return ids


class SeriesImages:
    """The images of the series that were ever retrieved from an archive, kept in a file for each series.

    Of each image some SOPInstanceUIDs are kept, so that it is known again when the series is retrieved anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._several = {file.name.removesuffix(SEVERAL): tuple(_read(file)) for file in folder.glob(f"*{SEVERAL}")}

    def of(self, series: str) -> tuple[str, ...]:
        """Ids of the series' images; the SeriesInstanceUID alone if it was never retrieved."""
        return self._several.get(series, (series,))

    def assign(self, series: str, keys: Mapping[str, SliceKey | None]) -> dict[str, list[str]]:
        """Record the images of a series that was retrieved just now.

        Args:
            series: SeriesInstanceUID.
            keys: what distinguishes each instance, by its SOPInstanceUID.

        Returns:
            The SOPInstanceUIDs of each image, by the image's id.
        """
        known = _read(self._folder / f"{series}{SINGLE}") | _read(self._folder / f"{series}{SEVERAL}")
        before = {instance: image_id for image_id, instances in known.items() for instance in instances}
        parts = split(keys)
        images = {image_id: parts[part] for part, image_id in sorted(image_ids(series, parts, before).items())}
        if keys:
            self._record(series, images)
        return images

    def _record(self, series: str, images: Mapping[str, list[str]]) -> None:
        make_folder(self._folder)
        single = images.keys() == {series}
        samples = {image_id: names[:: -(-len(names) // SAMPLES)] for image_id, names in images.items()}
        with replacing(self._folder / f"{series}{SINGLE if single else SEVERAL}") as staged:
            staged.write_text(json.dumps(samples))
        (self._folder / f"{series}{SEVERAL if single else SINGLE}").unlink(missing_ok=True)
        sync(self._folder)
        if single:
            self._several.pop(series, None)
        else:
            self._several[series] = tuple(images)


def recorded_images(folder: Path, series: str) -> tuple[str, ...]:
    """Ids of a series' images, from the files of `SeriesImages`; the SeriesInstanceUID alone if it holds one volume, or
    was never retrieved.
    """
    return tuple(_read(folder / f"{series}{SEVERAL}") if is_valid_name(series, "image") else ()) or (series,)


def forget_image(folder: Path, image_id: str) -> None:
    """Erase what `SeriesImages` keeps of one image in a folder that no server uses."""
    for file in (folder / f"{series_of(image_id)}{ext}" for ext in (SINGLE, SEVERAL)):
        images = _read(file)
        if images.pop(image_id, None) is None:
            continue
        if images:
            with replacing(file) as staged:
                staged.write_text(json.dumps(images))
        else:
            file.unlink()
            sync(folder)


def _read(file: Path) -> dict[str, list[str]]:
    """SOPInstanceUIDs by image id; empty if the file is missing or damaged."""
    try:
        images: dict[str, list[str]] = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return images
