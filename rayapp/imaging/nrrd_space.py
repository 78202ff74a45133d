"""The position of an NRRD image in space: its spatial axes and their affine, as ITK determines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, las_to_ras, ras_to_lps

_RAS = {"right-anterior-superior", "ras"}
_LAS = {"left-anterior-superior", "las"}
# ITK, and so Slicer, treats a missing space and spaces unrelated to the patient as LPS.
_LPS = {"left-posterior-superior", "lps", "", "scanner-xyz", "3d-right-handed", "3d-left-handed"}
_SPATIAL = {"domain", "space"}
_EXTRA = {"none", "time"}  # an axis that ITK makes the third one of an image with only two others


def placed_axes(fields: dict[str, Any], dimension: int) -> tuple[tuple[int, ...], Affine]:
    """The file's spatial axes, and the affine from indices along them to RAS mm.

    Args:
        fields: The header's fields, parsed by pynrrd.
        dimension: Number of axes of the file.

    Raises:
        Unreadable: If ITK would refuse the image too, or viewers would place it differently.
    """
    kinds = [str(kind).lower() for kind in fields.get("kinds", [])]
    if "complex" in kinds:
        raise Unreadable("the NRRD image holds complex numbers: save their magnitude")
    lps = np.eye(4)
    if "space directions" in fields:
        directions = np.array(fields["space directions"], float)
        if len(directions) != dimension:
            raise Unreadable(f"the NRRD header has {len(directions)} space directions for {dimension} axes")
        spatial = [axis for axis in range(dimension) if np.isfinite(directions[axis]).all()]
        vectors, world = directions[spatial].T, directions.shape[1]
        lps[: vectors.shape[0], : vectors.shape[1]] = vectors
        if len(spatial) == 2 and len(vectors) == 3:
            normal = np.cross(vectors[:, 0], vectors[:, 1])
            lps[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-12)
    else:
        spatial = [axis for axis in range(dimension) if not kinds or kinds[axis] in _SPATIAL or kinds[axis] == "???"]
        if len(spatial) == 2:
            spatial = [axis for axis in range(dimension) if axis in spatial or kinds[axis] in _EXTRA]
        if any(kinds[axis] in _EXTRA for axis in range(spatial[0] if spatial else 0) if kinds):
            raise Unreadable("the NRRD image's first axis is none of space, which ITK takes for one: move it last")
        world = len(spatial)
        placed = {"space", "space dimension", "spacedimension"} & fields.keys()
        if placed and ("spacings" in fields or str(fields.get("space", "")).lower() not in _LPS):
            raise Unreadable("the NRRD header has a space but no space directions: ITK and 3D Slicer do not open it")
        sizes = _per_axis(fields, "spacings", dimension)[spatial[:3]]
        lps[range(len(sizes)), range(len(sizes))] = np.where(np.isnan(sizes), 1.0, sizes)
        if not placed:
            lps[range(len(sizes)), 3] = _origin(fields, sizes, spatial[:3], dimension)
    lost = [kind for axis, kind in enumerate(kinds) if kind in _SPATIAL and axis not in spatial]
    if len(kinds) not in (0, dimension) or len(spatial) not in (2, 3) or dimension - len(spatial) > 1 or lost:
        raise Unreadable(f"an NRRD image must have two or three spatial axes and at most one other; its kinds: {kinds}")
    if "space origin" in fields:
        lps[:world, 3] = np.array(fields["space origin"], float).reshape(world)
    space = str(fields.get("space", "")).lower()
    if space in _RAS:
        return tuple(spatial), lps
    if space in _LAS:
        return tuple(spatial), las_to_ras(lps)
    if space in _LPS:
        return tuple(spatial), ras_to_lps(lps)
    raise Unreadable(f"the NRRD space {space!r} is not supported: save it as left-posterior-superior")


def _per_axis(fields: dict[str, Any], name: str, dimension: int) -> npt.NDArray[np.float64]:
    """A number for each axis; NaN where the header has none."""
    return np.array(fields.get(name, np.full(dimension, np.nan)), np.float64).reshape(dimension)


def _origin(
    fields: dict[str, Any], sizes: npt.NDArray[np.float64], spatial: list[int], dimension: int
) -> npt.NDArray[np.float64]:
    """Position of the first voxel's centre along each spatial axis of an image without a space.

    An axis min is the edge of the first voxel, or its centre if the axis is node-centred. As in Teem, it counts only if
    each axis has a min and a spacing or max.
    """
    mins = _per_axis(fields, "axis mins" if "axis mins" in fields else "axismins", dimension)[spatial]
    maxs = _per_axis(fields, "axis maxs" if "axis maxs" in fields else "axismaxs", dimension)[spatial]
    centers = fields.get("centerings") or str(fields.get("centers", "")).split() or ["???"] * dimension
    nodes = np.array([str(centers[axis]).lower() == "node" for axis in spatial])
    counts = np.array([int(fields["sizes"][axis]) for axis in spatial])
    if np.isnan(mins).all() or (np.isnan(maxs) & np.isnan(sizes)).any():
        return np.zeros(len(spatial))
    if not np.isfinite(mins).all():
        raise Unreadable("the NRRD header's axis mins are not given for each axis: save it with space directions")
    steps = np.where(np.isnan(sizes), (maxs - mins) / np.maximum(counts - nodes, 1), sizes)
    origin: npt.NDArray[np.float64] = np.where(nodes, mins, mins + steps / 2)
    return origin
