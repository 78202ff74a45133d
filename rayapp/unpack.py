"""Unpacking an uploaded archive without trusting anything in it.

Only plain files come out, under names of our own, so that no name in the archive can lead anywhere; an archive that
tries is refused all the same. Every size is counted while it is read, whatever the archive declares.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from rayapp.errors import TooLarge, Unreadable

MAX_FILES = 20_000
_CHUNK = 1 << 20
_LONGEST_READ = 16 << 20
"""Bytes of one header: tar files may announce any length for one, and it would be read into memory whole."""
_IGNORED = (".DS_Store", "Thumbs.db")

Member = tuple[str, IO[bytes]]


def unpack(folder: Path, *, max_bytes: int) -> tuple[str, ...]:
    """Replace the archive `folder/0` (zip, tar, tar.gz) by the files in it, `0`, `1`, …; their names, without folders.

    Raises:
        Unreadable: if it is damaged, empty, or holds links, devices, encrypted files or names that lead elsewhere.
        TooLarge: if it unpacks to more than `max_bytes` or `MAX_FILES` files.
    """
    archive = (folder / "0").rename(folder / "archive")
    names: list[str] = []
    left = max_bytes
    try:
        with archive.open("rb") as file:
            for name, member in _members(file, max_bytes):
                if len(names) == MAX_FILES:
                    raise TooLarge(f"the archive holds more than {MAX_FILES} files")
                with (folder / str(len(names))).open("wb") as out:
                    while chunk := member.read(_CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise _too_large(max_bytes)
                        out.write(chunk)
                names.append(name)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise Unreadable(f"the archive is damaged: {type(error).__name__}") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, a compression that Python lacks
        raise Unreadable("the archive is encrypted, or compressed in a way that is not read here") from error
    if not names:
        raise Unreadable("the archive holds no files")
    archive.unlink()
    return tuple(names)


def _members(file: BinaryIO, max_bytes: int) -> Iterator[Member]:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"PK"):
        return _zipped(file)
    if magic.startswith(b"\x1f\x8b"):
        return _tarred(gzip.GzipFile(fileobj=file), max_bytes)
    return _tarred(file, max_bytes)


def _zipped(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            kind = stat.S_IFMT(entry.external_attr >> 16)
            name = _checked(entry.filename, plain=kind in (0, stat.S_IFREG))
            if name:
                with archive.open(entry) as member:
                    yield name, member


def _tarred(file: IO[bytes], max_bytes: int) -> Iterator[Member]:
    # Headers and padding come on top of what the files hold.
    limited = _Limited(file, 2 * max_bytes + (1 << 20))
    with tarfile.open(fileobj=cast(Any, limited), mode="r:") as archive:
        for entry in archive:
            if entry.isdir():
                continue
            name = _checked(entry.name, plain=entry.isreg())
            member = archive.extractfile(entry)
            if name and member is not None:
                yield name, member


class _Limited:
    """A file that is read up to a limit, and never much at once."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._limit = limit
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_READ:
            raise Unreadable("the archive has a header too long to be true")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise _too_large(self._limit)


def _checked(name: str, *, plain: bool) -> str:
    """The last part of a member's name; "" for what file managers leave in archives."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise Unreadable("the archive holds a link, a device, or a name that leads out of it: pack plain files")
    junk = path.name in _IGNORED or path.parts[0] == "__MACOSX"
    return "" if junk else path.name


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the archive unpacks to more than {limit} bytes: send less, or raise max_volume")
