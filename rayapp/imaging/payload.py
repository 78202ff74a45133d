"""The bytes that a header announces: read once, into one buffer, never more than was announced; plain or gzipped.

gzip goes through ISA-L (about three times as fast as zlib). All sizes are checked before anything is allocated.
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
_MOST_INFLATED = 1032  # deflate's densest code: 258 bytes for two bits
_DAMAGE: Any = (EOFError, OSError, zlib.error, igzip_lib.error)
_LEVEL = 1


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading. Raises Unreadable, without its path, when it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unreadable(f"the file cannot be opened: {error.strerror}") from None
    with file:
        yield file


class Payload:
    """An open file from where it stands to its end."""

    def __init__(self, file: BinaryIO, *, packed: bool) -> None:
        stored = os.fstat(file.fileno()).st_size - file.tell()
        self._most = stored * _MOST_INFLATED if packed else stored
        self._stream: Any = igzip.IGzipFile(fileobj=file, mode="rb") if packed else file

    def read(self, size: int) -> Bytes:
        """Exactly `size` bytes in a buffer of their own, writable. Raises Unreadable if there are fewer."""
        if size > self._most:
            raise Unreadable(f"the file is truncated: its header announces {size} bytes, which it cannot hold")
        buffer = np.empty(size, np.uint8)
        view, done = buffer.data, 0
        while done < size:
            piece = self._next(min(_CHUNK, size - done))
            if not piece:
                raise Unreadable(f"the file is truncated: {done} of {size} bytes are there")
            view[done : done + len(piece)] = piece
            done += len(piece)
        return buffer

    def end(self) -> None:
        """Check that nothing follows and that checksums agree. Raises Unreadable."""
        if self._next(1):
            raise Unreadable("the file holds more bytes than its header announces")

    def _next(self, size: int) -> bytes:
        try:
            piece: bytes = self._stream.read(size)
        except _DAMAGE as error:
            raise Unreadable(f"the file is truncated or damaged: {error}") from error
        return piece


def check_size(nbytes: int, max_bytes: int) -> None:
    """Raise TooLarge when a header announces more than the cap."""
    if nbytes > max_bytes:
        raise TooLarge(f"the header announces {nbytes} bytes of voxels; at most {max_bytes} are taken (max_volume)")


def gzipped(data: Bytes) -> bytes:
    """One gzip member, at the level that is fast and still squeezes label maps well."""
    packed: bytes = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_GZIP)
    return packed


def deflated(data: Bytes) -> bytes:
    """A zlib stream."""
    packed: bytes = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_ZLIB)
    return packed


def inflated(data: bytes | memoryview, size: int) -> Bytes:
    """Inflate a zlib stream that is whole and gives exactly `size` bytes. Raises Unreadable otherwise."""
    machine = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    try:
        out = machine.decompress(data, size + 1)
    except _DAMAGE as error:
        raise Unreadable(f"the compressed data are damaged: {error}") from error
    if len(out) != size or not machine.eof or machine.unused_data:
        raise Unreadable(f"the compressed data are not a whole stream of {size} bytes")
    return np.frombuffer(out, np.uint8)
