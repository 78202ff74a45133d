"""SessionStore: images that clients upload for temporary use, outside the datastore."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from rayapp.config import Settings
from rayapp.errors import BadRequest, NotFound
from rayapp.files.archives import unpack
from rayapp.files.durable import sync
from rayapp.imaging.reader import read_volume
from rayapp.protocol import checked_name

Info = dict[str, Any]
_META = "meta.info"
_SERIES = "series"
_ABANDONED_S = 3600
"""Seconds without a new file after which an upload counts as abandoned."""


def base_name(filename: str) -> str:
    """The file name of an upload, without the client's folders, which may be those of a Windows path.

    Raises BadRequest if it is not a valid file name here.
    """
    return checked_name(filename.replace("\\", "/").rsplit("/", 1)[-1], "file")


class SessionStore:
    """Stores each session in a folder: `<root>/<id>/<image>` and `<root>/<id>/meta.info`, one line of JSON.

    All state is on disk, so any process can serve any session: a session is created and removed by one rename, and the
    time of its last use is the modification time of `meta.info`, which is updated without a lock. Thread-safe.

    Args:
        root: folder of the sessions; created if missing, readable by its owner only, since the images are patient data.
        expiry: seconds without use after which a session expires; also the most that a client may ask for.
        max_volume: maximum size in bytes of a decoded image, or of the unpacked members of an archive.
    """

    @classmethod
    def of(cls, settings: Settings) -> SessionStore:
        """The sessions of the server with these settings, in its workspace."""
        root = settings.workspace / "sessions"
        return cls(root, expiry=settings.session_expiry, max_volume=settings.max_volume)

    def __init__(self, root: Path, *, expiry: int, max_volume: int) -> None:
        self._root = root
        self._expiry = expiry
        self._max_volume = max_volume
        self._staging = root / ".staging"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._staging.mkdir(mode=0o700, exist_ok=True)

    def stage(self) -> Path:
        """A new folder on the sessions' file system; write the uploaded files into it under their `base_name`."""
        folder = self._staging / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        return folder

    def create(self, staged: Path, *, uncompress: bool = False, expiry: int = 0) -> Info:
        """Create a session from the files in `staged`. Durable on return; on failure nothing is left.

        One file is an image; several files are one DICOM series.

        Args:
            staged: the folder from `stage`.
            uncompress: unpack a single zip, tar or tar.gz first.
            expiry: seconds without use until the session expires; 0 for the server's setting, which is also the
                maximum.

        Returns:
            `{"session_id", "session_info"}`, the info as `get` returns it.

        Raises:
            BadRequest: if there is no file, or more than one with `uncompress`.
            Unreadable: if the image or archive is damaged or of an unsupported format.
            TooLarge: if the image or the archive's members exceed `max_volume`.
        """
        folder, unpacked = self.stage(), self.stage()
        try:
            if uncompress:
                unpack(_only(staged), unpacked, max_bytes=self._max_volume, setting="max_volume", place=_flat)
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
        """Info of a session; with `touch` this counts as a use. Raises NotFound for an unknown or expired session."""
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
        """Path of the session's image: a file, or the folder of a DICOM series. Counts as a use. Raises NotFound."""
        info = self.get(session_id, touch=True)
        return self._folder(session_id) / str(info["image"])

    def remove(self, session_id: str) -> Info:
        """Delete a session. Returns its info. Raises NotFound."""
        info = self.get(session_id, touch=False)
        if not self._discard(session_id):
            raise _unknown(session_id)
        return info

    def count(self) -> int:
        """Number of sessions on disk."""
        return sum(folder != self._staging for folder in self._root.iterdir())

    def sweep(self) -> int:
        """Delete expired sessions and abandoned uploads. Returns the number of sessions deleted."""
        count = 0
        for folder in self._root.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                if folder != self._staging and _expired(_info(folder / _META)):
                    count += self._discard(folder.name)
        for folder in self._staging.iterdir():
            with suppress(FileNotFoundError):
                latest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if latest + _ABANDONED_S < time.time():
                    shutil.rmtree(folder, ignore_errors=True)
        return count

    def _take(self, source: Path, folder: Path) -> str:
        """Validate the image in `source` and move it into `folder`. Returns its name there."""
        files = list(source.iterdir())
        if not files:
            raise BadRequest("the request has no file: send an image, or the files of one DICOM series")
        for file in files:
            checked_name(file.name, "file")
        image = files[0] if len(files) == 1 else source
        read_volume(image, max_bytes=self._max_volume)
        name = image.name if len(files) == 1 else _SERIES
        image.rename(folder / name)
        return name

    def _folder(self, session_id: str) -> Path:
        """The session's folder. Only the canonical spelling of a UUID is accepted, so an id can never name another
        path.
        """
        try:
            valid = str(uuid.UUID(session_id)) == session_id
        except ValueError:
            valid = False
        if not valid:
            raise _unknown(session_id)
        return self._root / session_id

    def _discard(self, session_id: str) -> bool:
        """Remove a session by one rename, which succeeds for one of several concurrent callers only; False for the
        others.
        """
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
    return NotFound(f"no session {session_id[:60]!r}: it may have expired; create a new one")


def _only(folder: Path) -> Path:
    files = list(folder.iterdir())
    if len(files) != 1:
        raise BadRequest(f"uncompress expects one archive, not {len(files)} files")
    return files[0]


def _flat(path: PurePosixPath) -> PurePosixPath | None:
    """Place all files of an archive in one flat folder, each under its `base_name`; hidden files are skipped."""
    return None if path.name.startswith(".") else PurePosixPath(base_name(path.name))
