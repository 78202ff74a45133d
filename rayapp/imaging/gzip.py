"""gzip, fast (ISA-L) and bounded: what a header announces is checked before it is allocated."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from isal import igzip, isal_zlib

from rayapp.errors import TooLarge, Unreadable

_CHUNK = 1 << 20


def compress(data: bytes | memoryview) -> bytes:
    """One gzip member, at the fastest level that still squeezes label maps well."""
    packed: bytes = igzip.compress(data, compresslevel=1)
    return packed


class GzipReader:
    """Reads a gzip file front to back, never more than asked for."""

    def __init__(self, path: Path) -> None:
        self._file: Any = igzip.open(path, "rb")

    def __enter__(self) -> GzipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises Unreadable when the file ends before or is damaged."""
        data = bytearray()
        try:
            while len(data) < size:
                piece = self._file.read(min(size - len(data), 64 * _CHUNK))
                if not piece:
                    raise Unreadable(f"the file is truncated: {len(data)} of {size} bytes are there")
                data += piece
        except (EOFError, OSError, zlib.error, isal_zlib.error) as error:
            raise Unreadable(f"the compressed data are damaged: {error}") from error
        return bytes(data)


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """Inflate gzip or zlib data that must give exactly `size` bytes. Raises Unreadable otherwise."""
    machine = isal_zlib.decompressobj(wbits=47)
    try:
        out: bytes = machine.decompress(data, max_length=size + 1)
    except isal_zlib.error as error:
        raise Unreadable(f"the compressed data are damaged: {error}") from error
    if len(out) != size:
        raise Unreadable(f"the compressed data hold {'more' if len(out) > size else len(out)} bytes, not {size}")
    return out


def check_size(nbytes: int, max_bytes: int) -> None:
    """Raise TooLarge when a header announces more than the cap."""
    if nbytes > max_bytes:
        raise TooLarge(f"the header announces {nbytes} bytes of voxels; this server takes {max_bytes} (max_volume)")
