"""NRRD, raw or gzipped, and Slicer's `.seg.nrrd`: read volumes, grids and label maps, write label maps.

Follows https://teem.sourceforge.net/nrrd/format.html; segment fields as 3D Slicer writes them (`Segment0_Name`, …).
Data must lie in the file itself: a header that names another file is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane, ras_to_lps
from rayapp.imaging.gzip import check_size, compress, decompress
from rayapp.imaging.volume import Grid, Segmentation, Volume

_RAS = {"right-anterior-superior", "ras"}
_LPS = {"left-posterior-superior", "lps"}
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Header:
    fields: dict[str, Any]
    sizes: tuple[int, ...]
    spatial: tuple[int, int, int]  # which file axes are i, j, k
    affine: Affine
    dtype: np.dtype[Any]


def _read_header(file: BinaryIO) -> _Header:
    # A header without its closing blank line must not make the parser swallow gigabytes of voxels.
    start = file.read(_MAX_HEADER)
    end = min((at for mark in (b"\n\n", b"\r\n\r\n") if (at := start.find(mark)) >= 0), default=-1)
    if not start.startswith(b"NRRD") or end < 0:
        raise Unreadable("not an NRRD file: no header that ends in a blank line")
    file.seek(0)
    try:
        fields = dict(nrrd.read_header(file))
        if "data file" in fields or "datafile" in fields:
            raise Unreadable("an NRRD header must not name another data file: put the voxels in the same file")
        sizes = tuple(int(n) for n in fields["sizes"])
        dtype = np.dtype(nrrd.reader._determine_datatype(fields))
        return _Header(fields=fields, sizes=sizes, dtype=dtype, **_space(fields, sizes))
    except Unreadable:
        raise
    except (nrrd.NRRDError, KeyError, ValueError, TypeError, UnicodeDecodeError, IndexError, AttributeError) as error:
        raise Unreadable(f"the NRRD header is damaged: {error}") from error


def _space(fields: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, Any]:
    """Which axes are spatial, and the affine."""
    if len(sizes) not in (2, 3, 4) or any(n < 1 for n in sizes):
        raise Unreadable(f"NRRD sizes {sizes} are not those of an image")
    kinds = [str(kind).lower() for kind in fields.get("kinds", [])] or ["domain"] * len(sizes)
    directions = np.atleast_2d(np.array(fields["space directions"], float)) if "space directions" in fields else None
    if directions is not None:
        spatial = [n for n in range(len(sizes)) if np.isfinite(directions[n]).all()]
    else:
        spatial = [n for n, kind in enumerate(kinds) if kind in ("domain", "space")][:3]
    if len(spatial) != 3:
        raise Unreadable(f"an NRRD image needs three spatial axes; this one has {len(spatial)}")
    affine = np.eye(4)
    if directions is not None:
        affine[:3, :3] = directions[spatial].T
    elif "spacings" in fields:
        affine[:3, :3] = np.diag(np.array(fields["spacings"], float)[spatial])
    if "space origin" in fields:
        affine[:3, 3] = np.array(fields["space origin"], float)
    space = str(fields.get("space", "left-posterior-superior")).lower()
    if space in _LPS:
        affine = ras_to_lps(affine)
    elif space not in _RAS:
        raise Unreadable(f"the NRRD space {space!r} is not patient space (LPS or RAS)")
    if not is_sane(affine):
        raise Unreadable("the NRRD header's directions are not finite or not invertible")
    return {"spatial": (spatial[0], spatial[1], spatial[2]), "affine": affine}


def _shape(header: _Header) -> tuple[int, int, int]:
    i, j, k = (header.sizes[axis] for axis in header.spatial)
    return i, j, k


def read_grid(path: Path) -> Grid:
    """The grid alone: reads the header only."""
    with path.open("rb") as file:
        header = _read_header(file)
    return Grid(shape=_shape(header), affine=header.affine)


def _read(path: Path, max_bytes: int) -> tuple[_Header, npt.NDArray[Any]]:
    """The header, and the voxels of shape (C, I, J, K)."""
    with path.open("rb") as file:
        header = _read_header(file)
        nbytes = math.prod(header.sizes) * header.dtype.itemsize
        check_size(nbytes, max_bytes)
        encoding = str(header.fields.get("encoding", "")).lower()
        if encoding not in ("raw", "gzip", "gz"):
            raise Unreadable(f"the NRRD encoding {encoding!r} is not read here; save it raw or gzip")
        data = file.read(nbytes if encoding == "raw" else -1)
    if encoding != "raw":
        data = decompress(data, nbytes)
    if len(data) < nbytes:
        raise Unreadable(f"the file is truncated: {len(data)} of {nbytes} bytes are there")
    array = np.frombuffer(data, header.dtype).reshape(header.sizes, order="F")
    if not header.dtype.isnative:
        array = array.astype(header.dtype.newbyteorder("="))
    others = [axis for axis in range(len(header.sizes)) if axis not in header.spatial]
    array = array.transpose(*others, *header.spatial)
    return header, array if others else array[np.newaxis]


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The whole image. Raises Unreadable, TooLarge."""
    header, array = _read(path, max_bytes)
    return Volume(array=array, affine=header.affine)


def read_segmentation(path: Path, *, max_bytes: int) -> tuple[npt.NDArray[Any], Affine, dict[str, int]]:
    """A label map with its segments' names. Slicer's layers (overlapping segments) are laid over each other in order.

    With layers the voxel values of different layers may be alike, so segments are renumbered 1..N in their order.
    """
    header, layers = _read(path, max_bytes)
    segments = list(_segments(header.fields))
    if len(layers) == 1:
        return layers[0], header.affine, {name: value for name, value, _ in segments}
    if not segments:
        raise Unreadable(f"a label map has one channel; this file has {len(layers)} and names no segments")
    flat = np.zeros(layers.shape[1:], np.uint8 if len(segments) < 256 else np.uint16, order="F")
    for number, (_, value, layer) in enumerate(segments, 1):
        if not 0 <= layer < len(layers):
            raise Unreadable(f"a segment lies in layer {layer} of {len(layers)}")
        flat[layers[layer] == value] = number
    return flat, header.affine, {name: number for number, (name, _, _) in enumerate(segments, 1)}


def _segments(fields: dict[str, Any]) -> Any:
    number = 0
    while f"Segment{number}_ID" in fields or f"Segment{number}_Name" in fields:
        name = fields.get(f"Segment{number}_Name", fields.get(f"Segment{number}_ID"))
        try:
            value = int(fields.get(f"Segment{number}_LabelValue", number + 1))
            layer = int(fields.get(f"Segment{number}_Layer", 0))
        except ValueError as error:
            raise Unreadable(f"the fields of segment {number} are damaged: {error}") from error
        yield str(name), value, layer
        number += 1


def encode(segmentation: Segmentation, array: npt.NDArray[Any], *, segments: bool, packed: bool) -> bytes:
    """An NRRD in LPS, i fastest, little endian; `segments` adds Slicer's fields for a `.seg.nrrd`."""
    affine = ras_to_lps(segmentation.affine)
    kind = {1: "unsigned char", 2: "unsigned short"}[array.dtype.itemsize]
    directions = " ".join(_vector(affine[:3, axis]) for axis in range(3))
    lines = [
        "NRRD0004",
        f"type: {kind}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, segmentation.shape))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
        f"space origin: {_vector(affine[:3, 3])}",
    ]
    if segments:
        lines += _segment_fields(segmentation)
    body = array.ravel(order="F").data
    head = ("\n".join(lines) + "\n\n").encode()
    return head + (compress(body) if packed else bytes(body))


def _segment_fields(segmentation: Segmentation) -> list[str]:
    extent = " ".join(f"0 {n - 1}" for n in segmentation.shape)
    lines = ["Segmentation_ReferenceImageExtentOffset:=0 0 0"]
    for number, (name, value) in enumerate(sorted(segmentation.names.items(), key=lambda item: item[1])):
        fields = {"ID": f"Segment_{value}", "Name": name, "LabelValue": value, "Layer": 0, "Extent": extent}
        lines += [f"Segment{number}_{key}:={text}" for key, text in fields.items()]
    return lines


def _vector(numbers: npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(n)) for n in numbers) + ")"
