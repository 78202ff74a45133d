"""Names of a label map's values, from the info that clients send when they save it.

3D Slicer sends `label_info` (`[{name, idx}]`, in the order of its segments); a model's result has `label_names`
(`{name: value}`, or a list) in its `params`. A `.seg.nrrd` itself names its segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rayapp.imaging.volume import Segmentation


def with_names(segmentation: Segmentation, info: Mapping[str, Any]) -> Segmentation:
    """The label map with the names from its file or, if it has none, from its info."""
    if segmentation.names:
        return segmentation
    values = {int(value) for value in np.flatnonzero(np.bincount(segmentation.array.ravel("K")))} - {0}
    return dataclasses.replace(segmentation, names=names_of(info, values))


def names_of(info: Mapping[str, Any], values: set[int]) -> dict[str, int]:
    """Name and value of each segment.

    If the numbers in `label_info` do not cover the `values` that occur, they are positions in a longer list of segments
    than was saved; the values are then ranks in that list.
    """
    entries = entries_of(info)
    if entries:
        numbers = {name: entry.get("idx", entry.get("labelID")) for name, entry in entries.items()}
        if values <= {number for number in numbers.values() if isinstance(number, int)}:
            return {name: number for name, number in numbers.items() if isinstance(number, int) and number > 0}
        return {name: rank for rank, name in enumerate(entries, 1)}
    params = info.get("params")
    names = params.get("label_names") if isinstance(params, Mapping) else None
    if isinstance(names, Mapping):
        return {str(name): value for name, value in names.items() if isinstance(value, int) and value > 0}
    if isinstance(names, list):
        return {str(name): rank for rank, name in enumerate(names, 1)}
    return {}


def entries_of(info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of `label_info` by name."""
    entries = info.get("label_info")
    if not isinstance(entries, list):
        return {}
    return {str(entry["name"]): entry for entry in entries if isinstance(entry, Mapping) and entry.get("name")}
