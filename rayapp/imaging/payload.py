"""Reading the payload of an image file, plain or gzipped: once, into one buffer, and only the size that its header
gives.

gzip uses ISA-L, about three times as fast as zlib. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib

from rayapp.errors import TooLarge, Unreadable

Bytes = npt.NDArray[np.uint8]
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

    def __init__(self, file: BinaryIO, *, packed: bool) -> None:
        stored = os.fstat(file.fileno()).st_size - file.tell()
        self._most = stored * _MAX_RATIO if packed else stored
        self._stream: Any = igzip.IGzipFile(fileobj=file, mode="rb") if packed else file

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
