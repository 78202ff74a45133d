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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.imaging.payload import check_size, deflated, inflated
from rayapp.imaging.raster import raster
from rayapp.imaging.sparse_labels import SparseLabels, occupied

_HEAD = struct.Struct("<4sBB3I3I3II")
_MAGIC, _VERSION, _MAX_PLANES = b"RMSK", 1, 16
_MAX_AXIS = 1 << 16
_SLAB = 8
"""Slices packed at a time; eight slices always make up a whole number of bytes."""

Mask = npt.NDArray[Any]
Shape = tuple[int, int, int]


def encode(labels: Mask | SparseLabels, previous: Mask | None = None) -> bytes:
    """Encode a label map, or the part of it that differs from `previous`.

    Fastest when both arrays have i fastest in memory.

    Args:
        labels: shape (I, J, K), unsigned integers up to 65535; of sparse labels only their box is looked at.
        previous: the mask that the receiver has, of the same shape; None for zeros.

    Raises:
        ValueError: for a signed type, another number of axes, larger values, or a `previous` of another shape.
    """
    if isinstance(labels, SparseLabels):
        if previous is not None or labels.beyond:
            return encode(np.asarray(labels), previous)
        return _encoded(raster(labels.part), occupied(raster(labels.part)), labels.shape, labels.lower)
    if labels.ndim != 3 or labels.dtype.kind not in "bu" or max(labels.shape) > _MAX_AXIS:
        raise ValueError(f"a mask must have three axes and an unsigned type, not {labels.shape} of {labels.dtype}")
    if previous is not None and previous.shape != labels.shape:
        raise ValueError(f"the previous mask has shape {previous.shape}, not {labels.shape}")
    voxels = raster(labels)
    box = occupied(voxels if previous is None else voxels != raster(previous))
    return _encoded(voxels, box, labels.shape, (0, 0, 0))


def _encoded(voxels: Mask, box: tuple[slice, ...] | None, shape: Sequence[int], lower: Sequence[int]) -> bytes:
    """Encode a box of voxels (k, j, i), which lie at `lower` (i, j, k) in a mask of a shape (I, J, K)."""
    if box is None:
        return _HEAD.pack(_MAGIC, _VERSION, 0, *shape, *[0] * 7)
    part = voxels[box]
    # A box of zeros (erased voxels) still needs one plane.
    planes = max(1, int(part.max()).bit_length())
    if planes > _MAX_PLANES:
        raise ValueError(f"mask values must not exceed 65535: found {int(part.max())}")
    payload = deflated(_packed(part, planes).ravel())
    corner = (s.start + low for s, low in zip(box[::-1], lower, strict=True))
    size = (s.stop - s.start for s in box[::-1])
    return _HEAD.pack(_MAGIC, _VERSION, planes, *shape, *corner, *size, len(payload)) + payload


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
    head = _header(data)
    if onto is not None and onto.shape != head.shape:
        raise Unreadable(f"the packed mask has shape {head.shape}, the previous mask {onto.shape}")
    check_size(math.prod(head.shape) * head.dtype.itemsize, max_bytes)
    if onto is None:
        labels = np.zeros(head.shape, head.dtype, order="F")
    else:
        labels = np.array(raster(onto), np.promote_types(onto.dtype, head.dtype)).T
    if head.planes:
        labels[tuple(slice(c, c + s) for c, s in zip(head.corner, head.size, strict=True))] = _payload(data, head)
    return labels


def to_text(labels: Mask | SparseLabels) -> str:
    """The encoded label map in base64, for JSON."""
    return base64.b64encode(encode(labels)).decode()


def from_text(text: str, shape: Shape) -> Mask:
    """Decode a label map of this shape from base64. Raises Unreadable, TooLarge."""
    data = _from_base64(text, shape)
    return decode(data, max_bytes=2 * math.prod(shape))


def sparse_from_text(text: str, shape: Shape) -> SparseLabels:
    """Decode a label map of this shape from base64 without the voxels outside its box.

    Raises:
        Unreadable: if the data are invalid, or values exceed 255.
    """
    data = _from_base64(text, shape)
    head = _header(data)
    if head.dtype != np.uint8:
        raise Unreadable("the packed mask must have values up to 255")
    part = _payload(data, head) if head.planes else np.zeros((0, 0, 0), np.uint8)
    return SparseLabels(shape=head.shape, lower=head.corner, part=part)


def check_text(text: str) -> None:
    """Check what can be known of a packed mask in base64 without inflating it. Raises Unreadable."""
    try:
        _header(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise Unreadable(f"the packed mask is not valid base64: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _Header:
    planes: int
    shape: Shape
    corner: Shape
    size: Shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.planes <= 8 else np.uint16)


def _from_base64(text: str, shape: Shape) -> bytes:
    """The bytes of a packed mask of this shape. Raises Unreadable."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Unreadable(f"the packed mask is not valid base64: {error}") from None
    if (own := _header(data).shape) != shape:
        raise Unreadable(f"the packed mask has {own} voxels, its image {shape}")
    return data


def _header(data: bytes) -> _Header:
    """The header of a packed mask. Raises Unreadable if it contradicts itself or the data's length."""
    if len(data) < _HEAD.size:
        raise Unreadable(f"a packed mask has at least {_HEAD.size} bytes, not {len(data)}")
    magic, version, planes, *numbers, length = _HEAD.unpack_from(data)
    shape, corner, size = ((n[0], n[1], n[2]) for n in (numbers[:3], numbers[3:6], numbers[6:9]))
    if magic != _MAGIC or version != _VERSION or planes > _MAX_PLANES:
        raise Unreadable("not a packed mask of version 1")
    if len(data) != _HEAD.size + length or (length if planes == 0 else 0 in size):
        raise Unreadable(f"the packed mask's {len(data)} bytes do not match its header")
    if any(n > _MAX_AXIS for n in shape) or any(c + s > n for c, s, n in zip(corner, size, shape, strict=True)):
        raise Unreadable(f"a box of {size} at {corner} does not fit a mask of {shape}")
    return _Header(planes=planes, shape=shape, corner=corner, size=size)


def _payload(data: bytes, head: _Header) -> Mask:
    """The voxels of a packed mask's box, i fastest in memory."""
    values = _unpacked(data[_HEAD.size :], head.planes, math.prod(head.size), head.dtype)
    return values.reshape(head.size, order="F")


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
