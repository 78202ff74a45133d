"""Reading the payload of an image file (plain, gzip or zlib) in one pass into one buffer of the size given by its
header.

Decompression uses ISA-L, about three times as fast as zlib. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib

from rayapp.errors import TooLarge, Unreadable

Bytes = npt.NDArray[np.uint8]
Codec = Literal["raw", "gzip", "zlib"]
"""Encodings of a payload."""
_CHUNK = 1 << 22
_MAX_RATIO = 1032  # highest compression ratio of deflate: 258 bytes for two bits
_DAMAGE: Any = (EOFError, OSError, zlib.error, igzip_lib.error)
_LEVEL = 1


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises Unreadable, without the path, if it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unreadable(f"the file cannot be opened: {error.strerror}") from None
    with file:
        yield file


class Payload:
    """The rest of an open file, from its current position."""

    def __init__(self, file: BinaryIO, codec: Codec) -> None:
        stored = os.fstat(file.fileno()).st_size - file.tell()
        self._most = stored if codec == "raw" else stored * _MAX_RATIO
        self._stream: Any = file
        if codec == "gzip":
            self._stream = igzip.IGzipFile(fileobj=file, mode="rb")
        elif codec == "zlib":
            self._stream = _ZlibFile(file)

    def read(self, size: int) -> Bytes:
        """Read exactly `size` bytes into a new writable buffer. Raises Unreadable if there are fewer."""
        if size > self._most:
            raise Unreadable(f"the file is truncated: it is too small for the {size} bytes in its header")
        buffer = np.empty(size, np.uint8)
        view, done = buffer.data, 0
        while done < size:
            piece = self._next(min(_CHUNK, size - done))
            if not piece:
                raise Unreadable(f"the file is truncated: it has {done} of {size} bytes")
            view[done : done + len(piece)] = piece
            done += len(piece)
        return buffer

    def end(self) -> None:
        """Check that no data follow and that checksums match. Raises Unreadable."""
        if self._next(1):
            raise Unreadable("the file has more data than its header specifies")

    def _next(self, size: int) -> bytes:
        try:
            piece: bytes = self._stream.read(size)
        except _DAMAGE as error:
            raise Unreadable(f"the file is truncated or damaged: {error}") from error
        return piece


class _ZlibFile:
    """The decompressed bytes of a zlib stream that ends where the file does."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises EOFError if the stream does not end there."""
        piece = b""
        while not piece and not self._decompressor.eof:
            more = self._file.read(_CHUNK) if self._decompressor.needs_input else b""
            if not more and self._decompressor.needs_input:
                raise EOFError("the compressed data end too early")
            piece = self._decompressor.decompress(more, size)
        if not piece and (self._decompressor.unused_data or self._file.read(1)):
            raise EOFError("more data follow the compressed ones")
        return piece


def check_size(nbytes: int, max_bytes: int) -> None:
    """Raise TooLarge if the size exceeds the maximum."""
    if nbytes > max_bytes:
        raise TooLarge(f"the voxels take {nbytes} bytes; the limit is {max_bytes}: raise max_volume to open the file")


def gzipped(data: Bytes) -> bytes:
    """Compress to one gzip member, at a level that is fast yet compresses label maps well."""
    packed: bytes = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_GZIP)
    return packed


def deflated(data: Bytes) -> bytes:
    """Compress to a zlib stream."""
    packed: bytes = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_ZLIB)
    return packed


def inflated(data: bytes | memoryview, size: int) -> Bytes:
    """Decompress a complete zlib stream of exactly `size` bytes. Raises Unreadable otherwise."""
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    try:
        out = decompressor.decompress(data, size + 1)
    except _DAMAGE as error:
        raise Unreadable(f"the compressed data are damaged: {error}") from error
    if len(out) != size or not decompressor.eof or decompressor.unused_data:
        raise Unreadable(f"the compressed data are not a complete stream of {size} bytes")
    return np.frombuffer(out, np.uint8)
