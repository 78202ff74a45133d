"""SessionStore: images that a client brings along for a while, outside the datastore."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import struct
import tarfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from rayapp.datastore.commit import sync
from rayapp.errors import BadRequest, NotFound, TooLarge, Unreadable
from rayapp.imaging.reader import read_volume
from rayapp.protocol import checked_name

Info = dict[str, Any]
MAX_MEMBERS = 20_000
"""Members one archive may have: some times the slices of the longest series."""
_META = "meta.info"
_SERIES = "series"
_ABANDONED = 3600
"""Seconds after which an upload that nothing was added to is taken for one whose process died."""
_LONGEST_HEADER = 1 << 16
_HEADERS_OF_HEADERS = (
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
"""What zipfile and tarfile raise on damaged input; an OSError of the disk is not among them."""


def base_name(filename: str) -> str:
    """The last part of an uploaded file's name, which may be a whole client path, also a Windows one.

    Raises BadRequest if that part cannot be a file name here.
    """
    return checked_name(filename.replace("\\", "/").rsplit("/", 1)[-1], "file")


class SessionStore:
    """A folder per session: `<root>/<id>/<image>` and `<root>/<id>/meta.info`, one line of JSON.

    All state is on disk, so any process can serve any session: a session appears and goes by one rename, and the time
    of its last use is the modification time of `meta.info`, which needs no lock to be moved on. Thread-safe.

    Args:
        root: where the folders lie; made if absent, readable by its owner only, since images are patients' data.
        expiry: seconds without use after which a session is gone; the most that a client may ask for.
        max_volume: bytes that one decoded image, or the unpacked members of one archive, may have.
    """

    def __init__(self, root: Path, *, expiry: int, max_volume: int) -> None:
        self._root = root
        self._expiry = expiry
        self._max_volume = max_volume
        self._staging = root / ".staging"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._staging.mkdir(mode=0o700, exist_ok=True)

    def stage(self) -> Path:
        """A fresh folder on the sessions' file system; write the uploaded files into it under their `base_name`."""
        folder = self._staging / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        return folder

    def create(self, staged: Path, *, uncompress: bool = False, expiry: int = 0) -> Info:
        """Make a session of the files in `staged`; durable on return, and nothing is left of it on failure.

        One file is an image, several are the files of one DICOM series; `uncompress` unpacks one zip, tar or tar.gz
        first. `expiry` is in seconds; 0 means the server's, which is also the most.

        Returns:
            `{"session_id", "session_info"}`; the info as `get` returns it.

        Raises:
            BadRequest: if there is no file, or `uncompress` and more than one.
            Unreadable: if the image or the archive is not a whole, sane one.
            TooLarge: if the image or the archive's members are over `max_volume`.
        """
        folder, unpacked = self.stage(), self.stage()
        try:
            if uncompress:
                unpack(_only(staged), unpacked, max_bytes=self._max_volume)
            name = self._take(unpacked if uncompress else staged, folder)
            session = str(uuid.uuid4())
            now = int(time.time())
            info = {
                "name": session,
                "path": str(self._root / session),
                "image": name,
                "meta": {},
                "create_ts": now,
                "last_access_ts": now,
                "expiry": min(expiry, self._expiry) if expiry > 0 else self._expiry,
            }
            (folder / _META).write_text(json.dumps(info) + "\n")
            for path in sorted(folder.rglob("*")):
                sync(path)
            sync(folder)
            folder.rename(self._root / session)
            sync(self._root)
        finally:
            for leftover in (staged, unpacked, folder):
                shutil.rmtree(leftover, ignore_errors=True)
        return {"session_id": session, "session_info": info}

    def get(self, session_id: str, *, touch: bool) -> Info:
        """What is known of a session; `touch` counts as a use. Raises NotFound for an unknown or expired one."""
        meta = self._folder(session_id) / _META
        try:
            info = _info(meta)
            if _expired(info):
                raise FileNotFoundError
            if touch:
                meta.touch(exist_ok=True)
                info = _info(meta)
        except FileNotFoundError:
            raise _unknown(session_id) from None
        return info

    def image(self, session_id: str) -> Path:
        """The session's image: a file, or a folder with a DICOM series. Counts as a use. Raises NotFound."""
        info = self.get(session_id, touch=True)
        return self._folder(session_id) / str(info["image"])

    def remove(self, session_id: str) -> Info:
        """End a session; returns what was known of it. Raises NotFound."""
        info = self.get(session_id, touch=False)
        if not self._discard(session_id):
            raise _unknown(session_id)
        return info

    def sweep(self) -> int:
        """Remove the expired sessions, and uploads that were abandoned; returns how many sessions that were."""
        count = 0
        for folder in self._root.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                if folder != self._staging and _expired(_info(folder / _META)):
                    count += self._discard(folder.name)
        for folder in self._staging.iterdir():
            with suppress(FileNotFoundError):
                latest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if latest + _ABANDONED < time.time():
                    shutil.rmtree(folder, ignore_errors=True)
        return count

    def _take(self, source: Path, folder: Path) -> str:
        """Check the image that the files in `source` make and move it into `folder`; returns its name there."""
        files = list(source.iterdir())
        if not files:
            raise BadRequest("there is no file in the request: send an image, or the files of one DICOM series")
        for file in files:
            checked_name(file.name, "file")
        image = files[0] if len(files) == 1 else source
        read_volume(image, max_bytes=self._max_volume)
        name = image.name if len(files) == 1 else _SERIES
        image.rename(folder / name)
        return name

    def _folder(self, session_id: str) -> Path:
        """Only the one spelling of a UUID that names a folder here; anything else is unknown, and never a path."""
        try:
            whole = str(uuid.UUID(session_id)) == session_id
        except ValueError:
            whole = False
        if not whole:
            raise _unknown(session_id)
        return self._root / session_id

    def _discard(self, session_id: str) -> bool:
        """Take a session away by a rename, which only one of several callers can do; False for the others."""
        gone = self._staging / str(uuid.uuid4())
        try:
            self._folder(session_id).rename(gone)
        except FileNotFoundError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True


def _info(meta: Path) -> Info:
    info: Info = json.loads(meta.read_text())
    return {**info, "last_access_ts": int(meta.stat().st_mtime)}


def _expired(info: Info) -> bool:
    return bool(info["last_access_ts"] + info["expiry"] < time.time())


def _unknown(session_id: str) -> NotFound:
    return NotFound(f"there is no session {session_id[:60]!r}: it may have expired; create a new one")


def _only(folder: Path) -> Path:
    files = list(folder.iterdir())
    if len(files) != 1:
        raise BadRequest(f"uncompress takes one archive, not {len(files)} files")
    return files[0]


def unpack(archive: Path, target: Path, *, max_bytes: int) -> None:
    """Unpack a zip, tar or tar.gz flatly: every file into `target` under its `base_name`, hidden ones left out.

    Raises:
        Unreadable: if it is none of these, damaged or encrypted, or has a member that is a link, a device, lies
            outside the archive, or has another's name.
        TooLarge: if it has more than `MAX_MEMBERS` members or they have more than `max_bytes` bytes.
    """
    count, left = 0, max_bytes
    try:
        for name, size, content in _members(archive):
            count, left = count + 1, left - size
            if size < 0:
                raise Unreadable(f"the archive's member {count} announces a negative size")
            if count > MAX_MEMBERS:
                raise TooLarge(f"the archive has more than {MAX_MEMBERS} members")
            if left < 0:
                raise TooLarge(f"the archive holds more than {max_bytes} bytes (max_volume)")
            parts = name.replace("\\", "/").split("/")
            if not parts[0] or ".." in parts or ":" in parts[0]:
                raise Unreadable(f"the archive's member {count} lies outside of it: use relative paths only")
            if content is not None and not parts[-1].startswith("."):
                _write(content, size, target / base_name(name))
    except FileExistsError:
        raise Unreadable(f"two members of the archive have one name (the second is member {count})") from None
    except _DAMAGED as error:
        raise Unreadable(f"not a whole zip, tar or tar.gz: {type(error).__name__}") from error


def _write(content: IO[bytes], size: int, path: Path) -> None:
    """Exactly the announced bytes: a member that holds more was counted wrongly, one that holds less is damaged."""
    with content, path.open("xb") as file:
        while piece := content.read(min(_PIECE, size + 1)):
            size -= len(piece)
            if size < 0:
                break
            file.write(piece)
    if size != 0:
        raise Unreadable("a member of the archive has not the size that its header announces")


Member = tuple[str, int, IO[bytes] | None]
"""Name, announced bytes, and the content; None for a folder."""


def _members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        magic = file.read(2)
    return _zipped(archive) if magic == b"PK" else _tarred(archive, "r:gz" if magic == b"\x1f\x8b" else "r:")


def _zipped(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Unreadable("the archive has a link or a device; put the files themselves into it")
            # Others are unpacked by zipfile without a bound on memory.
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unreadable("the archive is encrypted, or packed by a method other than deflate")
            yield member.filename, member.file_size, None if member.is_dir() else opened.open(member)


class _BoundedHeader(tarfile.TarInfo):
    """Refuses long headers of headers, which tarfile reads whole into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        """See TarInfo."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _HEADERS_OF_HEADERS and header.size > _LONGEST_HEADER):
            raise Unreadable("the archive has a header of unusual length")
        return header


def _tarred(archive: Path, mode: Literal["r:", "r:gz"]) -> Iterator[Member]:
    with tarfile.open(archive, mode, tarinfo=_BoundedHeader) as opened:
        for member in opened:
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise Unreadable("the archive has a link, a device or a sparse file; put the files themselves into it")
            yield member.name, member.size, None if member.isdir() else opened.extractfile(member)
