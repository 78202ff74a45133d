"""UserStore: the users of a server with `--auth token`, their roles and tokens."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rayapp.errors import Conflict, NotFound, RayappError
from rayapp.files.durable import make_folder, replacing
from rayapp.protocol import Role, checked_name

Entry = dict[str, str | int]
Entries = dict[str, Entry]
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class User:
    """An authenticated caller.

    `created` is in seconds since the epoch; 0 for the only user of a server without authentication.
    """

    name: str
    role: Role
    created: int = 0


class UserStore:
    """Users in a JSON file readable by its owner only: for each name, the role and the SHA-256 digest of the token.

    A plain digest suffices: salt and slow hashing protect passwords, which people choose and which can be guessed from
    a list. A token is 256 random bits, which cannot be guessed, and every request must be checked quickly.

    Several processes may use one file: each sees the others' changes on its next call. Thread-safe.
    """

    @classmethod
    def of(cls, workspace: Path) -> UserStore:
        """The users of the server with this workspace."""
        return cls(workspace / "users.json")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._entries: Entries = {}

    def add(self, name: str, role: Role) -> str:
        """Add a user; durable on return.

        Returns:
            The user's token. It is not stored, so this is the only time it can be shown.

        Raises:
            BadRequest: if the name is invalid.
            Conflict: if the user exists.
        """
        checked_name(name, "user")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._writing():
            entries = self._read()
            if name in entries:
                raise Conflict(f"user {name!r} exists already: revoke it first to issue a new token")
            self._write({**entries, name: {"role": role.value, "created": int(time.time()), "sha256": _digest(token)}})
        return token

    def revoke(self, name: str) -> None:
        """Remove a user and so invalidate the token; durable on return. Raises NotFound if there is no such user."""
        with self._writing():
            entries = self._read()
            if name not in entries:
                raise NotFound(f"no user {name!r}: see `rayapp users list`")
            self._write({other: entry for other, entry in entries.items() if other != name})

    def authenticate(self, token: str) -> User | None:
        """The user with this token; None if there is none. Takes constant time, so that timing reveals nothing about
        the digests.
        """
        digest, user = _digest(token), None
        for name, entry in self._read().items():
            if hmac.compare_digest(digest, str(entry["sha256"])):
                user = _user(name, entry)
        return user

    def list(self) -> list[User]:
        """All users, ordered by name."""
        return [_user(name, entry) for name, entry in sorted(self._read().items())]

    def _writing(self) -> FileLock:
        make_folder(self._path.parent)
        return FileLock(f"{self._path}.lock", mode=0o600)

    def _read(self) -> Entries:
        """The file's entries; parsed again only if the file has changed."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    # fstat of the open file: the stamp is of the bytes read, even if the file is replaced meanwhile.
                    status = os.fstat(file.fileno())
                    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                    if stamp != self._seen:
                        self._entries = _parsed(file.read())
                        self._seen = stamp
            except FileNotFoundError:
                self._entries, self._seen = {}, None
            return self._entries

    def _write(self, entries: Entries) -> None:
        """Replace the file atomically. The caller holds the file lock."""
        with replacing(self._path) as staged:
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(entries, file, indent=2)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _user(name: str, entry: Entry) -> User:
    return User(name=name, role=Role(str(entry["role"])), created=int(entry["created"]))


def _parsed(text: bytes) -> Entries:
    """Parse the file; fail closed if it is corrupt, since guessing could admit anybody."""
    try:
        entries: Entries = json.loads(text)
        for name, entry in entries.items():
            _user(name, entry)
            bytes.fromhex(str(entry["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RayappError(
            "the user file is corrupt, so nobody can sign in: restore it, or delete it and add the users again"
        ) from None
    return entries
