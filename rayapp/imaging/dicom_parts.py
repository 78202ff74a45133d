"""Parts of a DICOM series that holds several volumes, such as echoes, phases or acquisitions.

A series is split only if slices share a position, and only by an attribute whose values leave no two slices of a part
at one position. Otherwise it stays together and is refused when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

ATTRIBUTES = {
    "EchoNumbers": "echo",
    "EchoTime": "te",
    "TemporalPositionIdentifier": "time",
    "DiffusionBValue": "b",
    "InversionTime": "ti",
    "TriggerTime": "trigger",
    "NominalPercentageOfCardiacPhase": "phase",
    "AcquisitionNumber": "acquisition",
    "ImageType": "type",
}
"""Attributes by which parts are distinguished, the likeliest first, and their names in an image's id."""
TAGS = ("ImagePositionPatient", "NumberOfFrames", *ATTRIBUTES)
"""The attributes of a header that `SliceKey.of` reads."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class SliceKey:
    """Position of a slice, and its values of `ATTRIBUTES` as text, "" for each that is missing."""

    position: tuple[float, ...]
    values: tuple[str, ...]

    @classmethod
    def of(cls, header: Dataset) -> SliceKey | None:
        """The key of a file's slice; None for a file without a position or with several frames."""
        try:
            position = tuple(round(float(number), 3) for number in header.get("ImagePositionPatient") or ())
            if len(position) != 3 or int(header.get("NumberOfFrames") or 1) > 1:
                return None
        except (TypeError, ValueError):
            return None
        return cls(position=position, values=tuple(_text(header, keyword) for keyword in ATTRIBUTES))


def _text(header: Dataset, keyword: str) -> str:
    """The attribute's value in characters that are valid in an id; "" if it is missing or damaged."""
    try:
        value = header.get(keyword)
    except Exception:  # values are parsed when they are first asked for
        return ""
    words = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return "-".join(_UNSAFE.sub("-", str(word)).strip("-.") for word in words if word not in (None, ""))


def split(keys: Mapping[K, SliceKey | None]) -> dict[str, list[K]]:
    """The slices of each part of a series, by the part's name, such as `echo-2`; a single part has the name ""."""
    whole = {"": list(keys)}
    slices = {name: key for name, key in keys.items() if key is not None}
    if len(slices) < len(keys) or len({key.position for key in slices.values()}) == len(slices):
        return whole
    for place, word in enumerate(ATTRIBUTES.values()):
        parts: dict[str, list[K]] = {}
        for name, key in slices.items():
            parts.setdefault(f"{word}-{key.values[place]}", []).append(name)
        distinct = all(len({slices[name].position for name in part}) == len(part) for part in parts.values())
        if distinct and f"{word}-" not in parts and 1 < len(parts) <= len(slices) // 2:
            return dict(sorted(parts.items()))
    return whole
