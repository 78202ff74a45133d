"""Wire format of a label map for our own clients: the changed box as packed bits.

Little endian, byte by byte:

    0   4   b"RMSK"
    4   1   version, 1
    5   1   number of bit planes P, 0 to 16 (0: nothing changed, no payload)
    6   12  full shape I, J, K (three uint32, each at most 65536)
    18  12  lower corner of the box i, j, k (three uint32)
    30  12  size of the box along i, j, k (three uint32; all 0 when P is 0, otherwise none is)
    42  4   number of payload bytes that follow (uint32)
    46      payload: zlib stream of P planes, lowest bit first; each plane is the box's voxels, i fastest, one bit each,
            the first voxel in the lowest bit of the first byte, padded with zero bits to a whole byte

Voxels outside the box keep the values of the receiver's previous mask (initially zero).
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.imaging.payload import check_size, deflated, inflated
from rayapp.imaging.raster import raster

_HEAD = struct.Struct("<4sBB3I3I3II")
_MAGIC, _VERSION, _MAX_PLANES = b"RMSK", 1, 16
_MAX_AXIS = 1 << 16
_SLAB = 8
"""Slices packed at a time; eight slices always make up a whole number of bytes."""

Mask = npt.NDArray[Any]


def encode(labels: Mask, previous: Mask | None = None) -> bytes:
    """Encode a label map, or the part of it that differs from `previous`.

    Fastest when both arrays have i fastest in memory.

    Args:
        labels: shape (I, J, K), unsigned integers up to 65535.
        previous: the mask that the receiver has, of the same shape; None for zeros.

    Raises:
        ValueError: for a signed type, another number of axes, larger values, or a `previous` of another shape.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "bu" or max(labels.shape) > _MAX_AXIS:
        raise ValueError(f"a mask must have three axes and an unsigned type, not {labels.shape} of {labels.dtype}")
    if previous is not None and previous.shape != labels.shape:
        raise ValueError(f"the previous mask has shape {previous.shape}, not {labels.shape}")
    voxels = raster(labels)
    box = _extent(voxels if previous is None else voxels != raster(previous))
    if box is None:
        return _HEAD.pack(_MAGIC, _VERSION, 0, *labels.shape, *[0] * 7)
    part = voxels[box]
    # A box of zeros (erased voxels) still needs one plane.
    planes = max(1, int(part.max()).bit_length())
    if planes > _MAX_PLANES:
        raise ValueError(f"mask values must not exceed 65535: found {int(part.max())}")
    payload = deflated(_packed(part, planes).ravel())
    corner = (s.start for s in box[::-1])
    size = (s.stop - s.start for s in box[::-1])
    return _HEAD.pack(_MAGIC, _VERSION, planes, *labels.shape, *corner, *size, len(payload)) + payload


def decode(data: bytes, onto: Mask | None = None, *, max_bytes: int = 1 << 32) -> Mask:
    """Decode a label map: a copy of `onto` with the box replaced.

    Args:
        data: the encoded mask.
        onto: the previous mask; None for zeros.
        max_bytes: maximum size of the decoded mask.

    Returns:
        Shape (I, J, K), i fastest in memory; uint8, or uint16 when a value needs it.

    Raises:
        Unreadable: if the data are invalid, or `onto` has another shape.
        TooLarge: if the mask would exceed `max_bytes`.
    """
    if len(data) < _HEAD.size:
        raise Unreadable(f"a packed mask has at least {_HEAD.size} bytes, not {len(data)}")
    magic, version, planes, *numbers, length = _HEAD.unpack_from(data)
    shape, corner, size = tuple(numbers[:3]), numbers[3:6], numbers[6:9]
    if magic != _MAGIC or version != _VERSION or planes > _MAX_PLANES:
        raise Unreadable("not a packed mask of version 1")
    if len(data) != _HEAD.size + length or (length if planes == 0 else 0 in size):
        raise Unreadable(f"the packed mask's {len(data)} bytes do not match its header")
    if any(n > _MAX_AXIS for n in shape) or any(c + s > n for c, s, n in zip(corner, size, shape, strict=True)):
        raise Unreadable(f"a box of {size} at {corner} does not fit a mask of {shape}")
    if onto is not None and onto.shape != shape:
        raise Unreadable(f"the packed mask has shape {shape}, the previous mask {onto.shape}")
    dtype = np.dtype(np.uint8 if planes <= 8 else np.uint16)
    check_size(math.prod(shape) * dtype.itemsize, max_bytes)
    if onto is None:
        labels = np.zeros(shape, dtype, order="F")
    else:
        labels = np.array(raster(onto), np.promote_types(onto.dtype, dtype)).T
    if planes:
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        labels[box] = _unpacked(data[_HEAD.size :], planes, math.prod(size), dtype).reshape(size, order="F")
    return labels


def to_text(labels: Mask) -> str:
    """The encoded label map in base64, for JSON."""
    return base64.b64encode(encode(labels)).decode()


def from_text(text: str, shape: tuple[int, int, int]) -> Mask:
    """Decode a label map of this shape from base64. Raises Unreadable, TooLarge."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Unreadable(f"the packed mask is not valid base64: {error}") from None
    labels = decode(data, max_bytes=2 * math.prod(shape))
    if labels.shape != shape:
        raise Unreadable(f"the packed mask has {labels.shape} voxels, its image {shape}")
    return labels


def _extent(changed: Mask) -> tuple[slice, slice, slice] | None:
    """Bounding box of the non-zero elements of a C-contiguous array; None if there are none."""
    plane = np.bitwise_or.reduce(changed, axis=0)  # whole rows at a time: the fastest way to scan the array
    second, third = _span(plane.any(axis=1)), _span(plane.any(axis=0))
    if second is None or third is None:
        return None
    first = _span(np.asarray(changed[:, second, third].any(axis=(1, 2))))
    return None if first is None else (first, second, third)


def _span(flags: npt.NDArray[np.bool_]) -> slice | None:
    indices = np.flatnonzero(flags)
    return slice(int(indices[0]), int(indices[-1]) + 1) if indices.size else None


def _packed(part: Mask, planes: int) -> npt.NDArray[np.uint8]:
    """Bit planes of a box, shape (planes, bytes), packed slab by slab to stay within the processor's cache."""
    packed = np.empty((planes, -(-part.size // 8)), np.uint8)
    start = 0
    for first in range(0, len(part), _SLAB):
        slab = part[first : first + _SLAB].ravel()
        stop = start + -(-slab.size // 8)
        for bit, plane in enumerate(packed):
            # packbits treats any non-zero value as one.
            plane[start:stop] = np.packbits(slab & slab.dtype.type(1 << bit), bitorder="little")
        start = stop
    return packed


def _unpacked(payload: bytes, planes: int, count: int, dtype: np.dtype[Any]) -> Mask:
    packed = inflated(payload, planes * -(-count // 8)).reshape(planes, -1)
    values = np.zeros(count, dtype)
    for bit, plane in enumerate(packed):
        values |= np.unpackbits(plane, count=count, bitorder="little").astype(dtype, copy=False) << dtype.type(bit)
    return values
