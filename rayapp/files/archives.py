"""Safe unpacking of untrusted zip, tar and tar.gz archives."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from rayapp.errors import TooLarge, Unreadable

MAX_MEMBERS = 20_000
"""Maximum number of members of an archive: several times the slices of the longest series."""

Place = Callable[[PurePosixPath], PurePosixPath | None]
"""From a member's path to the path below the target folder that it is unpacked to; None leaves the member out."""
Progress = Callable[[int, int], None]
"""Called with the bytes of the archive that were read, and the archive's size."""

_LONGEST_HEADER = 1 << 16
_LONGEST_DIRECTORY = MAX_MEMBERS * 300
"""Bytes of a zip's directory: 46 a member, and its name."""
_EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_PIECE = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RecursionError,
    ValueError,
)
"""Exceptions of zipfile and tarfile on damaged input; an OSError of the disk is deliberately not among them."""
_Member = tuple[str, int, IO[bytes] | None]
"""(name, announced size in bytes, content); the content is None for a folder."""


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int,
    setting: str = "",
    place: Place = lambda path: path,
    progress: Progress = lambda read, size: None,  # noqa: ARG005
) -> None:
    """Unpack the plain files of an archive below a folder. Nothing is ever written outside of it.

    Args:
        archive: a zip, tar or tar.gz.
        target: the folder.
        max_bytes: the most that all members may have when unpacked.
        setting: name of the setting that `max_bytes` comes from, for the error.
        place: where each member goes.
        progress: called after each member.

    Raises:
        Unreadable: the file is none of these, or damaged or encrypted, or has a member that is a link or a device, has
            a path out of the archive, or has the place of another.
        TooLarge: it has more than `MAX_MEMBERS` members, or they have more than `max_bytes` bytes.
    """
    count, left, size = 0, max_bytes, archive.stat().st_size
    advice = f": raise {setting} to open it" if setting else ""
    try:
        with archive.open("rb") as file:
            for name, announced, content in _members(file):
                count, left = count + 1, left - announced
                if announced < 0:
                    raise Unreadable(f"the header of member {count} of the archive has a negative size")
                if count > MAX_MEMBERS:
                    raise TooLarge(f"the archive has more than {MAX_MEMBERS} members")
                if left < 0:
                    raise TooLarge(f"the archive unpacks to more than {max_bytes} bytes{advice}")
                parts = name.replace("\\", "/").split("/")
                if not parts[0] or ".." in parts or ":" in parts[0]:
                    raise Unreadable(f"the path of member {count} leads out of the archive: use relative paths only")
                place_of = place(PurePosixPath(*parts)) if content is not None else None
                if content is not None and place_of is not None:
                    _write(content, announced, target / place_of)
                progress(file.tell(), size)
    except FileExistsError:
        raise Unreadable(f"two members of the archive have the same name (the second is member {count})") from None
    except _DAMAGED as error:
        raise Unreadable(f"not an intact zip, tar or tar.gz file: {type(error).__name__}") from error
    progress(size, size)


def _write(content: IO[bytes], size: int, path: Path) -> None:
    """Write exactly `size` bytes: a member with more would escape the size limit, one with fewer is damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("xb") as file:
        while piece := content.read(min(_PIECE, size + 1)):
            size -= len(piece)
            if size < 0:
                break
            file.write(piece)
    if size != 0:
        raise Unreadable("a member of the archive does not have the size in its header")


def _members(file: BinaryIO) -> Iterator[_Member]:
    magic = file.read(2)
    file.seek(0)
    return _zipped(file) if magic == b"PK" else _tarred(file, gzipped=magic == b"\x1f\x8b")


def _zipped(file: BinaryIO) -> Iterator[_Member]:
    with zipfile.ZipFile(_Bounded(file)) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Unreadable("the archive contains a link or a device: include the files themselves")
            # zipfile unpacks other methods without a bound on memory.
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unreadable("the archive is encrypted or compressed by a method other than deflate: pack it again")
            yield member.filename, member.file_size, None if member.is_dir() else opened.open(member)


class _Bounded(io.BufferedIOBase):
    """A file whose zip directory, which zipfile reads in one piece, has a bound: an entry costs many times its size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        """See BufferedIOBase. Raises TooLarge."""
        if size is not None and size > _LONGEST_DIRECTORY:
            raise TooLarge(f"the archive has more than {MAX_MEMBERS} members")
        return self._file.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See BufferedIOBase."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See BufferedIOBase."""
        return self._file.tell()

    def seekable(self) -> bool:
        """See BufferedIOBase."""
        return True


class _BoundedHeader(tarfile.TarInfo):
    """Rejects long extended headers, which tarfile would read into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        """See TarInfo."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED_HEADERS and header.size > _LONGEST_HEADER):
            raise Unreadable("the archive has an oversized extended header: pack it again")
        return header


def _tarred(file: BinaryIO, *, gzipped: bool) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:gz" if gzipped else "r:", tarinfo=_BoundedHeader) as opened:
        for member in opened:
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise Unreadable("the archive contains a link, a device or a sparse file: include the files themselves")
            yield member.name, member.size, None if member.isdir() else opened.extractfile(member)
