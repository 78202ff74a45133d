"""MetaImage, `.mha` and `.mhd` with a file of voxels beside it, raw or zlib: read volumes and grids.

Follows https://itk.org/Wiki/ITK/MetaIO/Documentation and, where that leaves a choice, ITK: positions are LPS, a row of
the transform matrix is an axis' direction, and `AnatomicalOrientation` and `CenterOfRotation` do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.geometry import is_sane, ras_to_lps
from rayapp.imaging.detached import ImageHeader
from rayapp.imaging.foreign_content import START, foreign_content
from rayapp.imaging.payload import Payload, check_size, opened
from rayapp.imaging.volume import Grid, Volume

_MAX_HEADER = 1 << 20
_LAST = "ElementDataFile"
_BEGINNINGS = (b"ObjectType", b"NDims")
_TYPES = {
    **{"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"},
    **{"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"},
}
_DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
_PLACES = ("Offset", "Position", "Origin")
_BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_MILLIMETRES = {"mm", "", "?"}
_LOCAL = "LOCAL"


@dataclass(frozen=True, kw_only=True)
class _Header(ImageHeader):
    channels: int
    samples: int
    dtype: np.dtype[Any]
    packed: bool
    length: int


def read_header(path: Path) -> ImageHeader:
    """The header. Raises Unreadable."""
    with opened(path) as file:
        return _header(file, path)


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The whole image; a fourth axis, and several numbers for each voxel, become channels.

    Raises Unreadable, TooLarge.
    """
    with opened(path) as file:
        header = _header(file, path)
    shape = (header.channels, *header.grid.shape[::-1], header.samples)
    nbytes = math.prod(shape) * header.dtype.itemsize
    check_size(nbytes, max_bytes)
    other = header.data_file(path)
    with opened(other or path) as file:
        file.seek(0 if other else header.length)
        payload = Payload(file, "zlib" if header.packed else "raw")
        data = payload.read(nbytes)
        payload.end()
    array = data.view(header.dtype).reshape(shape)
    if not header.dtype.isnative:
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return Volume(array=array.transpose(0, 4, 3, 2, 1).reshape(-1, *header.grid.shape), affine=header.grid.affine)


def _header(file: BinaryIO, path: Path) -> _Header:
    start = file.read(_MAX_HEADER)
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*[=:][^\r\n]*(\r?\n|$)", start, re.MULTILINE)
    if found is None:
        what = None if start.startswith(_BEGINNINGS) else foreign_content(start[:START])
        raise Unreadable(f"not a MetaImage file{f', but {what}' if what else f': it has no field {_LAST}'}")
    fields = _fields(start[: found.end()].decode("utf-8", "replace"))
    try:
        return _checked(fields, found.end(), detached=path.suffix.lower() == ".mhd")
    except (KeyError, ValueError, OverflowError) as error:
        raise Unreadable(f"the MetaImage header is damaged: {error}") from error


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = re.sub("[=:]", "\0", line, count=1).partition("\0")
        if separator:
            fields[name.strip()] = value.strip()
    return fields


def _checked(fields: Mapping[str, str], length: int, *, detached: bool) -> _Header:
    if fields.get("ObjectType", "Image") != "Image":
        raise Unreadable(f"the MetaImage file holds a {fields['ObjectType'][:60]!r}, not an image")
    data = fields[_LAST]
    if data == "LIST" or "%" in data or len(data.split()) > 1:
        raise Unreadable("the MetaImage header names several files: save it as one .mha")
    if (data == _LOCAL) == detached:
        wanted = ".mha, as it holds its voxels" if data == _LOCAL else ".mhd, as its voxels are in another file"
        raise Unreadable(f"the MetaImage header disagrees with its extension: name it {wanted}")
    if not _flag(fields, "BinaryData", default=True):
        raise Unreadable("MetaImage files of text are not supported: save it as binary")
    if int(fields.get("HeaderSize", 0)):
        raise Unreadable("MetaImage headers with a HeaderSize are not supported: save it as one .mha")
    unit = fields.get("DistanceUnits", "")
    if unit.lower() not in _MILLIMETRES:
        raise Unreadable(
            f"the MetaImage header gives lengths in {unit[:20]}, which ITK and 3D Slicer take for millimetres: save it "
            "in millimetres"
        )
    count = int(fields["NDims"])
    sizes = [int(size) for size in fields["DimSize"].split()]
    if count not in (2, 3, 4) or len(sizes) != count or not all(0 < size < 1 << 31 for size in sizes):
        raise Unreadable(f"the MetaImage header's DimSize {fields['DimSize'][:60]!r} is not that of an image")
    samples = int(fields.get("ElementNumberOfChannels", 1))
    if samples < 1:
        raise Unreadable(f"the MetaImage header's ElementNumberOfChannels {samples} is not a number of channels")
    i, j, k, channels = (*sizes, 1, 1)[:4]
    affine = ras_to_lps(_lps(fields, count))
    if not is_sane(affine):
        raise Unreadable("the MetaImage header's directions are not finite or not invertible")
    return _Header(
        grid=Grid(shape=(i, j, k), affine=affine),
        channels=channels,
        samples=samples,
        dtype=_dtype(fields),
        packed=_flag(fields, "CompressedData", default=False),
        data_files=() if data == _LOCAL else (data,),
        length=length,
    )


def _dtype(fields: Mapping[str, str]) -> np.dtype[Any]:
    kind = _TYPES.get(fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY"))
    if kind is None:
        raise Unreadable(f"voxels of the MetaImage type {fields['ElementType'][:60]!r} are not supported")
    orders = {_flag(fields, name, default=False) for name in _BIG_ENDIAN if name in fields}
    if len(orders) > 1:
        raise Unreadable(f"the MetaImage header contradicts itself: {' and '.join(_BIG_ENDIAN)} differ")
    return np.dtype(f"{'>' if True in orders else '<'}{kind}")


def _lps(fields: Mapping[str, str], count: int) -> npt.NDArray[np.float64]:
    """The affine to LPS mm. A plane's third axis is a slice of 1 mm across it."""
    sizes = _numbers(fields, ("ElementSpacing", "ElementSize"), count, np.ones(count))
    matrix = _numbers(fields, _DIRECTIONS, count * count, np.eye(count)).reshape(count, count)
    place = _numbers(fields, _PLACES, count, np.zeros(count))
    if count == 4 and (matrix[3, :3].any() or matrix[:3, 3].any()):
        raise Unreadable("the MetaImage header's fourth axis lies in space: save it as a series of volumes")
    axes = min(count, 3)
    lps = np.eye(4)
    lps[:axes, :axes] = (matrix[:axes, :axes] * sizes[:axes, np.newaxis]).T
    lps[:axes, 3] = place[:axes]
    return lps


def _numbers(
    fields: Mapping[str, str], names: tuple[str, ...], count: int, default: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The numbers of the first of these fields that the header has. Raises ValueError if there are not `count`."""
    text = next((fields[name] for name in names if name in fields), None)
    return default if text is None else np.array([float(number) for number in text.split()]).reshape(count)


def _flag(fields: Mapping[str, str], name: str, *, default: bool) -> bool:
    return fields[name][:1] in ("T", "t", "1") if fields.get(name) else default
