"""Parts of a DICOM series that holds several volumes, such as echoes, phases or acquisitions.

A series is split only if its slices are not one volume, and only by what makes volumes of them: one attribute, or two
together, as for the magnitude and phase of several echoes. Otherwise it stays together and is refused when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_plane import Plane, check_parallel, read_plane, stack_affine

ATTRIBUTES: dict[str | int, str] = {
    "EchoNumbers": "echo",
    "EchoTime": "te",
    "TemporalPositionIdentifier": "time",
    "DiffusionBValue": "b",
    "InversionTime": "ti",
    "TriggerTime": "trigger",
    "NominalPercentageOfCardiacPhase": "phase",
    "AcquisitionNumber": "acquisition",
    "ImageType": "type",
    "FrameReferenceTime": "frame",
    "FlipAngle": "flip",
    "RepetitionTime": "tr",
    "KVP": "kvp",
    0x0019100C: "b",  # Siemens
    0x20011003: "b",  # Philips
    0x00431039: "b",  # GE
    "DiffusionGradientOrientation": "direction",
    "SequenceName": "sequence",
    "AcquisitionTime": "at",
}
"""Attributes by which parts are distinguished, the likeliest first, and their names in an image's id."""
_PLACE = (
    *("SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("SliceThickness", "Rows", "Columns", "NumberOfFrames"),
)
TAGS = tuple(Tag(attribute) for attribute in (*_PLACE, *ATTRIBUTES))
"""The attributes of a header that `SliceKey.of` reads."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")
_MOST_ELSEWHERE = 6
"""Maximum number of parts that lie in different places. More are the steps of one scan, of which a slice is missing."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class SliceKey:
    """A slice's place, and its values of `ATTRIBUTES` as text, "" for each that is missing.

    Attributes:
        position: ImagePositionPatient, LPS mm, rounded.
        values: the values of `ATTRIBUTES`.
        uid: SOPInstanceUID, the same for copies of one file; "" if it is missing.
        size: rows and columns.
        plane: the slice's plane; None if its attributes are missing.
    """

    position: tuple[float, ...]
    values: tuple[str, ...]
    uid: str
    size: tuple[int, int]
    plane: Plane | None

    @classmethod
    def of(cls, header: Dataset) -> SliceKey | None:
        """The key of a file's slice; None for a file without a position or with several frames."""
        try:
            position = tuple(round(float(number), 3) for number in header.get("ImagePositionPatient") or ())
            if len(position) != 3 or int(header.get("NumberOfFrames") or 1) > 1:
                return None
            size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        except (TypeError, ValueError):
            return None
        try:
            plane = read_plane([header])
        except Exception:  # values are parsed when they are first asked for
            plane = None
        return cls(
            position=position,
            values=tuple(_text(header, attribute) for attribute in ATTRIBUTES),
            uid=str(header.get("SOPInstanceUID") or ""),
            size=size,
            plane=plane,
        )


def _text(header: Dataset, attribute: str | int) -> str:
    """The attribute's value in characters that are valid in an id; "" if it is missing or damaged."""
    try:
        value = header[attribute].value if attribute in header else None
    except Exception:  # values are parsed when they are first asked for
        return ""
    words = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return "-".join(_UNSAFE.sub("-", str(word)).strip("-.") for word in words if word not in (None, ""))


def split(keys: Mapping[K, SliceKey | None]) -> dict[str, list[K]]:
    """The slices of each part of a series, by the part's name, such as `echo-2`; a single part has the name ""."""
    whole = {"": list(keys)}
    slices = {name: key for name, key in keys.items() if key is not None}
    if not slices or len(slices) < len(keys) or _is_volume(slices.values()):
        return whole
    elsewhere = _is_distinct(slices.values())
    for places in _distinguishing(slices.values()):
        parts = _parts(slices, places)
        if len(parts) > (_MOST_ELSEWHERE if elsewhere else len(slices) // 2):
            continue
        members = [[slices[name] for name in part] for part in parts.values()]
        if all(len(part) > 1 and _is_volume(part) if elsewhere else _is_distinct(part) for part in members):
            return dict(sorted(parts.items()))
    return whole


def _distinguishing(slices: Collection[SliceKey]) -> Iterator[Sequence[int]]:
    """Places in `ATTRIBUTES` of those that all slices have and that differ among them, each alone, then in pairs."""
    columns = list(enumerate(zip(*(key.values for key in slices), strict=True)))
    differing = [place for place, values in columns if "" not in values and len(set(values)) > 1]
    for count in (1, 2):
        yield from combinations(differing, count)


def _parts(slices: Mapping[K, SliceKey], places: Sequence[int]) -> dict[str, list[K]]:
    words, parts = list(ATTRIBUTES.values()), dict[str, list[K]]()
    for name, key in slices.items():
        parts.setdefault("_".join(f"{words[place]}-{key.values[place]}" for place in places), []).append(name)
    return parts


def _is_distinct(slices: Collection[SliceKey]) -> bool:
    """True if no two slices, apart from copies of one file, share a position."""
    different = {(key.uid or number, key.position, key.values) for number, key in enumerate(slices)}
    return len({position for _, position, _ in different}) == len(different)


def _is_volume(slices: Collection[SliceKey]) -> bool:
    """True if the slices are one even stack; if the plane of one is unknown, if none share a position."""
    if not _is_distinct(slices):
        return False
    planes = {key.position: key.plane for key in slices}
    known = [plane for plane in planes.values() if plane is not None]
    if len(known) < len(planes):
        return True
    try:
        check_parallel(known)
        stack_affine(sorted(known, key=lambda plane: float(known[0].normal @ plane.position)))
    except Unreadable:
        return False
    return len({key.size for key in slices}) == 1
