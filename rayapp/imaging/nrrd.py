"""NRRD, raw or gzipped, and Slicer's `.seg.nrrd`: read volumes, grids and label maps, write label maps.

Follows https://teem.sourceforge.net/nrrd/format.html; segment fields as 3D Slicer writes them (`Segment0_Name`, …).
Voxels must be in the file itself: a header that refers to a separate data file is refused.

A `.seg.nrrd` is often cropped to its segments. Its origin is then that of the crop, so its affine holds as it stands
and `Segmentation_ReferenceImageExtentOffset` must not be added; `rayapp.imaging.placement` pads it to the image's grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nrrd
import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane, las_to_ras, ras_to_lps
from rayapp.imaging.payload import Bytes, Payload, check_size, gzipped, opened
from rayapp.imaging.raster import raster
from rayapp.imaging.volume import Grid, Masks, Segmentation, Volume, painting_order

_WRITTEN = {"u1": "unsigned char", "u2": "unsigned short", "i2": "short", "u4": "unsigned int", "i4": "int"}
_RAS = {"right-anterior-superior", "ras"}
_LAS = {"left-anterior-superior", "las"}
# ITK, and so Slicer, treats a missing space and spaces unrelated to the patient as LPS.
_LPS = {"left-posterior-superior", "lps", "", "scanner-xyz", "3d-right-handed", "3d-left-handed"}
_SPATIAL = {"domain", "space"}
_EXTRA = {"none", "time"}  # an axis that ITK makes the third one of an image with only two others
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???", "none"}
_MAX_HEADER = 1 << 20
_BLANK = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, kw_only=True)
class _Header:
    fields: dict[str, Any]
    sizes: tuple[int, ...]
    spatial: tuple[int, ...]  # which file axes are i, j and, unless the image is flat, k
    grid: Grid
    dtype: np.dtype[Any]
    packed: bool


@dataclass(frozen=True, kw_only=True)
class _Segment:
    name: str
    value: int
    layer: int


def read_grid(path: Path) -> Grid:
    """The grid, from the header alone. Raises Unreadable."""
    with opened(path) as file:
        return _header(file).grid


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The whole image; a non-spatial axis, wherever it is, becomes the channels. Raises Unreadable, TooLarge."""
    header, array = _read(path, max_bytes)
    return Volume(array=array, affine=header.grid.affine)


def read_segmentation(path: Path, *, max_bytes: int) -> tuple[Volume, dict[str, int]]:
    """A label map of one channel, with the names and values of its segments.

    Where Slicer's layers (overlapping segments) overlap, the smaller segment covers the larger; `read_masks` gives all
    of each. As layers may use the same value for different segments, the segments are then renumbered 1..N. Raises
    Unreadable, TooLarge.
    """
    header, layers = _read(path, max_bytes)
    if len(layers) > 1:
        segments = _layered(header, layers)
        names = {segment.name: number for number, segment in enumerate(segments, 1)}
        return Volume(array=_flattened(layers, segments), affine=header.grid.affine), names
    volume = Volume(array=layers, affine=header.grid.affine)
    return volume, {segment.name: segment.value for segment in _segments(header.fields)}


def read_masks(path: Path, *, max_bytes: int) -> Masks | None:
    """The segments of a `.seg.nrrd` of several layers, which may overlap; None for a file of one. Raises Unreadable,
    TooLarge.
    """
    header, layers = _read(path, max_bytes)
    if len(layers) == 1:
        return None
    segments = _layered(header, layers)
    check_size(len(segments) * math.prod(header.grid.shape), max_bytes)
    array = np.stack([_mask(layers, segment) for segment in segments])
    return Masks(array=array, affine=header.grid.affine, names=tuple(segment.name for segment in segments))


def encode(segmentation: Segmentation, dtype: np.dtype[Any], *, segments: bool, packed: bool) -> bytes:
    """A NRRD file in LPS, i fastest, little endian.

    Args:
        segmentation: the label map.
        dtype: type of the stored voxels.
        segments: add Slicer's fields for a `.seg.nrrd`.
        packed: gzip the voxels.
    """
    lines = _segment_lines(segmentation.names.items(), segmentation.shape) if segments else []
    head = _head(segmentation.affine, segmentation.shape, dtype, packed=packed, extra=lines)
    voxels = raster(segmentation.array, dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return head + (gzipped(voxels) if packed else voxels.tobytes())


def encode_masks(masks: Masks) -> bytes:
    """A gzipped `.seg.nrrd` with a layer for each segment, so that those which overlap are kept whole."""
    shape = masks.array.shape[1:]
    lines = _segment_lines(((name, 1) for name in masks.names), shape, layered=True)
    head = _head(masks.affine, shape, np.dtype(np.uint8), packed=True, extra=lines, layers=len(masks.names))
    return head + gzipped(masks.array.astype(np.uint8).reshape(-1, order="F"))


def _head(
    affine: Affine,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    packed: bool,
    extra: list[str],
    layers: int | None = None,
) -> bytes:
    """The header in LPS; `layers` becomes the first axis, as in Slicer's files."""
    lps = ras_to_lps(affine)
    listed = layers is not None
    lines = [
        "NRRD0004",
        f"type: {_WRITTEN[dtype.str[1:]]}",
        f"dimension: {3 + listed}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, (*([layers] if listed else []), *shape)))}",
        f"space directions: {'none ' * listed}{' '.join(_vector(lps[:3, axis]) for axis in range(3))}",
        f"kinds: {'list ' * listed}domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
        f"space origin: {_vector(lps[:3, 3])}",
        *extra,
    ]
    return ("\n".join(lines) + "\n\n").encode()


def _header(file: BinaryIO) -> _Header:
    """Parse the header, leaving the file at the first byte of its payload."""
    start = file.read(_MAX_HEADER)
    blank = _BLANK.search(start)
    if not start.startswith(b"NRRD") or blank is None:
        raise Unreadable("not an NRRD file: it has no header that ends in a blank line")
    file.seek(blank.end())
    try:
        text = start[: blank.start()]
        return _checked(_fields(text.decode() if _is_utf8(text) else text.decode("latin-1")))
    except Unreadable:
        raise
    except (nrrd.NRRDError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise Unreadable(f"the NRRD header is damaged: {error}") from error


def _is_utf8(text: bytes) -> bool:
    """False for a header in Latin-1, as programs of older systems write key/value pairs."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fields(text: str) -> dict[str, Any]:
    """The parsed fields and key/value pairs of the header, field names in lower case."""
    lines = []
    for line in text.split("\n"):
        name, colon, value = line.rstrip("\r").partition(":")
        if colon and not value.startswith("="):
            name = name.lower()
        if name == "sizes" and any(len(number) > 9 for number in value.split()):
            raise Unreadable("the NRRD header's sizes are invalid")
        lines.append(name + colon + value)
    return dict(nrrd.read_header(lines))


def _checked(fields: dict[str, Any]) -> _Header:
    if "data file" in fields or "datafile" in fields:
        raise Unreadable("the NRRD header refers to a separate data file: save header and voxels in one file")
    if any(int(fields.get(name, 0)) for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise Unreadable("NRRD files with a line or byte skip are not supported: save it again")
    units = {unit for name in ("space units", "units") for unit in _words(fields.get(name))}
    if units - _MILLIMETRES:
        raise Unreadable(
            f"the NRRD header gives lengths in {', '.join(sorted(units - _MILLIMETRES))}, which ITK and 3D Slicer take "
            "for millimetres: save it in millimetres"
        )
    encoding = str(fields["encoding"]).lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise Unreadable(f"the NRRD encoding {encoding!r} is not supported: save it as raw or gzip")
    sizes = tuple(int(n) for n in fields["sizes"])
    if len(sizes) != int(fields["dimension"]) or len(sizes) not in (2, 3, 4) or any(n < 1 for n in sizes):
        raise Unreadable(f"the NRRD header's sizes {sizes} are not those of an image")
    spatial, affine = _space(fields, len(sizes))
    if not is_sane(affine):
        raise Unreadable("the NRRD header's directions are not finite or not invertible")
    i, j, k = (*(sizes[axis] for axis in spatial), 1)[:3]
    return _Header(
        fields=fields,
        sizes=sizes,
        spatial=spatial,
        grid=Grid(shape=(i, j, k), affine=affine),
        dtype=_dtype(fields),
        packed=encoding != "raw",
    )


def _dtype(fields: dict[str, Any]) -> np.dtype[Any]:
    name = nrrd.reader._TYPEMAP_NRRD2NUMPY.get(str(fields["type"]).lower())
    if name is None or name == "V":
        raise Unreadable(f"voxels of NRRD type {fields['type']!r} are not supported: save them as integers or floats")
    order = {"little": "<", "big": ">"}.get(str(fields.get("endian", "")).lower())
    if order is None and np.dtype(name).itemsize > 1:
        raise Unreadable("the NRRD header lacks the field endian")
    return np.dtype(f"{order or ''}{name}")


def _space(fields: dict[str, Any], dimension: int) -> tuple[tuple[int, ...], Affine]:
    """The spatial axes and the affine, as ITK determines them."""
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


def _words(value: object) -> list[str]:
    """The words of a list that pynrrd has parsed or left as text."""
    words = str(value or "").split() if isinstance(value, str | None) else [str(word) for word in cast(Any, value)]
    return [word.strip('"').lower() for word in words]


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


def _read(path: Path, max_bytes: int) -> tuple[_Header, npt.NDArray[Any]]:
    """The header and the voxels, shape (C, I, J, K), without a copy."""
    with opened(path) as file:
        header = _header(file)
        nbytes = math.prod(header.sizes) * header.dtype.itemsize
        check_size(nbytes, max_bytes)
        payload = Payload(file, packed=header.packed)
        data: Bytes = payload.read(nbytes)
        payload.end()
    array = data.view(header.dtype).reshape(header.sizes[::-1]).T
    if not header.dtype.isnative:
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    others = [axis for axis in range(len(header.sizes)) if axis not in header.spatial]
    array = array.transpose(*others, *header.spatial)
    return header, array.reshape(-1, *header.grid.shape)


def _layered(header: _Header, layers: npt.NDArray[Any]) -> list[_Segment]:
    """The segments of several layers. Raises Unreadable if there are none, or one is in no layer."""
    segments = list(_segments(header.fields))
    if not segments:
        raise Unreadable(f"a label map must have one channel; this file has {len(layers)} and no named segments")
    for number, segment in enumerate(segments, 1):
        if not 0 <= segment.layer < len(layers):
            raise Unreadable(f"segment {number} is in layer {segment.layer}, but the file has {len(layers)} layers")
    return segments


def _mask(layers: npt.NDArray[Any], segment: _Segment) -> npt.NDArray[np.bool_]:
    marked: npt.NDArray[np.bool_] = layers[segment.layer] == segment.value
    return marked


def _flattened(layers: npt.NDArray[Any], segments: list[_Segment]) -> npt.NDArray[Any]:
    flat = np.zeros(layers.shape[1:], np.uint8 if len(segments) < 256 else np.uint16, order="F")
    for place in painting_order([int(np.count_nonzero(_mask(layers, segment))) for segment in segments]):
        flat[_mask(layers, segments[place])] = place + 1
    return flat[np.newaxis]


def _segments(fields: dict[str, Any]) -> Iterator[_Segment]:
    number, used = 0, set()
    while (key := f"Segment{number}_ID") in fields or f"Segment{number}_Name" in fields:
        escaped = str(fields.get(f"Segment{number}_Name") or fields.get(key))
        name = re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", escaped)
        if name in used:  # Slicer allows two segments with the same name
            name = f"{name} ({number + 1})"
        used.add(name)
        try:
            value = int(fields.get(f"Segment{number}_LabelValue", number + 1))
            layer = int(fields.get(f"Segment{number}_Layer", 0))
        except ValueError as error:
            raise Unreadable(f"the fields of segment {number} are damaged: {error}") from error
        yield _Segment(name=name, value=value, layer=layer)
        number += 1


def _segment_lines(segments: Iterable[tuple[str, int]], shape: tuple[int, ...], *, layered: bool = False) -> list[str]:
    """Slicer's fields of segments, given as names and values; each in a layer of its own if `layered`."""
    extent = " ".join(f"0 {n - 1}" for n in shape)
    lines = ["Segmentation_ReferenceImageExtentOffset:=0 0 0"]
    ordered = segments if layered else sorted(segments, key=lambda item: item[1])
    for number, (name, value) in enumerate(ordered):
        # A name is free text from a client: NRRD's escapes keep it on one line.
        text = name.replace("\\", r"\\").replace("\n", r"\n")
        layer, own = (number, number + 1) if layered else (0, value)
        fields = {"ID": f"Segment_{own}", "Name": text, "LabelValue": value, "Layer": layer, "Extent": extent}
        lines += [f"Segment{number}_{key}:={field}" for key, field in fields.items()]
    return lines


def _vector(numbers: npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(n)) for n in numbers) + ")"
