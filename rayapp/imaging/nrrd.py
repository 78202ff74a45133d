"""NRRD, raw or gzipped, and Slicer's `.seg.nrrd`: read volumes, grids and label maps, write label maps.

Follows https://teem.sourceforge.net/nrrd/format.html; segment fields as 3D Slicer writes them (`Segment0_Name`, …).
Voxels are in the file itself, or, of an `.nhdr`, in one other file beside it.

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
from rayapp.geometry import Affine, is_sane, ras_to_lps
from rayapp.imaging.detached import ImageHeader
from rayapp.imaging.foreign_content import START, foreign_content
from rayapp.imaging.nrrd_space import placed_axes
from rayapp.imaging.payload import Bytes, Codec, Payload, check_size, gzipped, opened
from rayapp.imaging.raster import raster
from rayapp.imaging.volume import Grid, Masks, Segmentation, Volume, painting_order

_WRITTEN = {"u1": "unsigned char", "u2": "unsigned short", "i2": "short", "u4": "unsigned int", "i4": "int"}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???", "none"}
_MAX_HEADER = 1 << 20
_BLANK = re.compile(rb"\n\r?\n")
_NAMES_DATA = re.compile(rb"^data ?file:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class _Header(ImageHeader):
    fields: dict[str, Any]
    sizes: tuple[int, ...]
    spatial: tuple[int, ...]  # which file axes are i, j and, unless the image is flat, k
    dtype: np.dtype[Any]
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class _Segment:
    name: str
    value: int
    layer: int


def read_header(path: Path) -> ImageHeader:
    """The header. Raises Unreadable."""
    with opened(path) as file:
        return _header(file, path)


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
    """The segments of a `.seg.nrrd` with several layers, which may overlap; None for a file with one layer.

    Raises Unreadable, TooLarge.
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


def _header(file: BinaryIO, path: Path) -> _Header:
    """Parse the header, leaving the file at the first byte of its payload."""
    start = file.read(_MAX_HEADER)
    detached = path.suffix.lower() == ".nhdr"
    blank = _BLANK.search(start)
    if not start.startswith(b"NRRD") or (blank is None and not _NAMES_DATA.search(start)):
        what = None if start.startswith(b"NRRD") else foreign_content(start[:START])
        detail = f", but {what}" if what else ": it has no header that ends in a blank line"
        raise Unreadable(f"not an NRRD file{detail}")
    file.seek(len(start) if blank is None else blank.end())
    try:
        text = start if blank is None else start[: blank.start()]
        return _checked(_fields(text.decode() if _is_utf8(text) else text.decode("latin-1")), detached=detached)
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


def _checked(fields: dict[str, Any], *, detached: bool) -> _Header:
    named = fields.get("data file", fields.get("datafile"))
    if detached != (named is not None):
        wanted = ".nrrd, as it holds its voxels" if detached else ".nhdr, as its voxels are in another file"
        raise Unreadable(f"the NRRD header disagrees with its extension: name it {wanted}")
    if named is not None and (str(named) == "LIST" or str(named).startswith("LIST ") or "%" in str(named)):
        raise Unreadable("the NRRD header names several data files: save it as one .nrrd")
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
    spatial, affine = placed_axes(fields, len(sizes))
    if not is_sane(affine):
        raise Unreadable("the NRRD header's directions are not finite or not invertible")
    i, j, k = (*(sizes[axis] for axis in spatial), 1)[:3]
    return _Header(
        fields=fields,
        sizes=sizes,
        spatial=spatial,
        grid=Grid(shape=(i, j, k), affine=affine),
        dtype=_dtype(fields),
        codec="raw" if encoding == "raw" else "gzip",
        data_files=() if named is None else (str(named),),
    )


def _dtype(fields: dict[str, Any]) -> np.dtype[Any]:
    name = nrrd.reader._TYPEMAP_NRRD2NUMPY.get(str(fields["type"]).lower())
    if name is None or name == "V":
        raise Unreadable(f"voxels of NRRD type {fields['type']!r} are not supported: save them as integers or floats")
    order = {"little": "<", "big": ">"}.get(str(fields.get("endian", "")).lower())
    if order is None and np.dtype(name).itemsize > 1:
        raise Unreadable("the NRRD header lacks the field endian")
    return np.dtype(f"{order or ''}{name}")


def _words(value: object) -> list[str]:
    """The words of a list that pynrrd has parsed or left as text."""
    words = str(value or "").split() if isinstance(value, str | None) else [str(word) for word in cast(Any, value)]
    return [word.strip('"').lower() for word in words]


def _read(path: Path, max_bytes: int) -> tuple[_Header, npt.NDArray[Any]]:
    """The header and the voxels, shape (C, I, J, K), without a copy."""
    with opened(path) as file:
        header = _header(file, path)
        other, held = header.data_file(path), file.tell()
    nbytes = math.prod(header.sizes) * header.dtype.itemsize
    check_size(nbytes, max_bytes)
    with opened(other or path) as file:
        file.seek(0 if other else held)
        payload = Payload(file, header.codec)
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
