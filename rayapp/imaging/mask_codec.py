"""The wire form of a label map for our own clients: the changed box, as packed bits.

Little endian, byte by byte:

    0   4   b"RMSK"
    4   1   version, 1
    5   1   number of bit planes P, 0 to 16 (0: nothing changed, no payload)
    6   12  full shape I, J, K (three uint32)
    18  12  lower corner of the box i, j, k (three uint32)
    30  12  size of the box along i, j, k (three uint32; all 0 when P is 0)
    42  4   number of payload bytes that follow (uint32)
    46      payload: zlib stream of P planes, lowest bit first; each plane is the box's voxels, i fastest, one bit each,
            the first voxel in the lowest bit of the first byte, padded with zero bits to a whole byte

Voxels outside the box are those of the mask that the receiver has (zeros at the beginning).
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from rayapp.errors import Unreadable
from rayapp.imaging.gzip import check_size, decompress

_HEAD = struct.Struct("<4sBB3I3I3II")
_MAGIC, _VERSION, _MAX_PLANES = b"RMSK", 1, 16
_MAX_AXIS = 1 << 16

Mask = npt.NDArray[Any]
Box = tuple[slice, slice, slice]


def changed_box(labels: Mask, previous: Mask | None = None) -> Box | None:
    """The smallest box that holds every voxel in which the two differ (`previous` None: zeros); None if none does."""
    changed = labels if previous is None else labels != previous
    slices: list[slice] = []
    # Whole planes first, then only what is left: each step looks at a smaller array.
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(changed.any(axis=others))
        if not found.size:
            return None
        part = slice(int(found[0]), int(found[-1]) + 1)
        slices.insert(0, part)
        changed = changed[tuple(part if other == axis else slice(None) for other in range(3))]
    return slices[0], slices[1], slices[2]


def encode(labels: Mask, previous: Mask | None = None) -> bytes:
    """Encode an unsigned (I, J, K) label map, or what changed in it since `previous`.

    Raises ValueError for another number of axes, a signed type, values over 65535 or another shape of `previous`.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "bu":
        raise ValueError(f"a mask has three axes and an unsigned type, not {labels.ndim} axes of {labels.dtype}")
    if previous is not None and previous.shape != labels.shape:
        raise ValueError(f"the previous mask has shape {previous.shape}, not {labels.shape}")
    box = changed_box(labels, previous)
    if box is None:
        return _HEAD.pack(_MAGIC, _VERSION, 0, *labels.shape, 0, 0, 0, 0, 0, 0, 0)
    part = labels[box].ravel(order="F")
    # A box of zeros (erased voxels) still needs one plane.
    planes = max(1, int(part.max()).bit_length())
    if planes > _MAX_PLANES:
        raise ValueError(f"mask values go up to 65535, not {int(part.max())}")
    packed = b"".join(
        np.packbits((part >> bit) & 1 if planes > 1 else part, bitorder="little") for bit in range(planes)
    )
    payload = isal_zlib.compress(packed, 1)
    corner = (s.start for s in box)
    size = (s.stop - s.start for s in box)
    return _HEAD.pack(_MAGIC, _VERSION, planes, *labels.shape, *corner, *size, len(payload)) + payload


def decode(data: bytes, onto: Mask | None = None, *, max_bytes: int = 1 << 32) -> Mask:
    """The label map: a copy of `onto` (None: zeros) with the box replaced; uint8, or uint16 when a value needs it.

    Raises:
        Unreadable: if the bytes are not as specified, or `onto` has another shape.
        TooLarge: if the mask would have more than `max_bytes` bytes.
    """
    if len(data) < _HEAD.size:
        raise Unreadable(f"a packed mask has at least {_HEAD.size} bytes, not {len(data)}")
    magic, version, planes, *numbers, length = _HEAD.unpack_from(data)
    shape, corner, size = tuple(numbers[:3]), numbers[3:6], numbers[6:9]
    if magic != _MAGIC or version != _VERSION or planes > _MAX_PLANES:
        raise Unreadable("not a packed mask of version 1")
    if len(data) != _HEAD.size + length:
        raise Unreadable(f"the packed mask has {len(data)} bytes, not {_HEAD.size + length}")
    if any(n > _MAX_AXIS for n in shape) or any(c + s > n for c, s, n in zip(corner, size, shape, strict=True)):
        raise Unreadable(f"a box of {size} at {corner} does not fit a mask of {shape}")
    dtype = np.dtype(np.uint8 if planes <= 8 else np.uint16)
    if onto is not None and onto.shape != shape:
        raise Unreadable(f"the mask has shape {shape}, the one it changes {onto.shape}")
    check_size(math.prod(shape) * dtype.itemsize, max_bytes)
    if onto is None:
        labels = np.zeros(shape, dtype, order="F")
    else:
        labels = np.array(onto, np.promote_types(onto.dtype, dtype), order="F")
    if planes:
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        labels[box] = _unpack(data[_HEAD.size :], planes, math.prod(size), dtype).reshape(size, order="F")
    return labels


def _unpack(payload: bytes, planes: int, count: int, dtype: np.dtype[Any]) -> Mask:
    stride = -(-count // 8)
    packed = np.frombuffer(decompress(payload, planes * stride), np.uint8)
    values = np.zeros(count, dtype)
    for bit in range(planes):
        plane = np.unpackbits(packed[bit * stride : (bit + 1) * stride], count=count, bitorder="little")
        values |= plane.astype(dtype) << bit
    return values
