"""UserStore: the users of a server with `--auth token`, their roles and tokens."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rayapp.errors import Conflict, NotFound, NotSignedIn, RayappError
from rayapp.files.durable import make_folder, replacing
from rayapp.protocol import Role, checked_name

Entry = dict[str, str | int]
Entries = dict[str, Entry]
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class User:
    """An authenticated caller.

    `created` and `expires` are in seconds since the epoch. `created` is 0 for the only user of a server without
    authentication; `expires` is None for a token that does not.
    """

    name: str
    role: Role
    created: int = 0
    expires: int | None = None


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

    def add(self, name: str, role: Role, *, days: float | None = None) -> str:
        """Add a user; durable on return.

        Args:
            name: of the user.
            role: of the user.
            days: after which the token expires; None for never.

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
                raise Conflict(f"user {name!r} exists already: `rayapp users rotate` issues a new token")
            self._write({**entries, name: _entry(role.value, token, days)})
        return token

    def rotate(self, name: str, *, days: float | None = None, overlap: float = 0.0) -> str:
        """Issue a new token to a user, with the same role; durable on return.

        Args:
            name: of the user.
            days: after which the new token expires; None for never.
            overlap: hours for which the token before it is valid still, unless it expires earlier.

        Returns:
            The new token; see `add`.

        Raises:
            NotFound: there is no such user.
        """
        token, now = secrets.token_urlsafe(_TOKEN_BYTES), time.time()
        with self._writing():
            entries = self._read()
            if name not in entries:
                raise _unknown(name)
            old = entries[name]
            entry = _entry(str(old["role"]), token, days)
            if overlap > 0:
                until = int(now + overlap * 3600)
                entry |= {"old_sha256": old["sha256"], "old_expires": min(until, int(old.get("expires", until)))}
            self._write({**entries, name: entry})
        return token

    def revoke(self, name: str) -> None:
        """Remove a user and so invalidate the token; durable on return. Raises NotFound if there is no such user."""
        with self._writing():
            entries = self._read()
            if name not in entries:
                raise _unknown(name)
            self._write({other: entry for other, entry in entries.items() if other != name})

    def authenticate(self, token: str) -> User | None:
        """The user with this token; None if there is none, or it has expired. Takes constant time, so that timing
        reveals nothing about the digests.
        """
        digest, user, now = _digest(token), None, time.time()
        for name, entry in self._read().items():
            for prefix in ("", "old_"):
                matches = hmac.compare_digest(digest, str(entry.get(f"{prefix}sha256", "")))
                if matches and now < entry.get(f"{prefix}expires", math.inf):  # type: ignore[operator]
                    user = _user(name, entry)
        return user

    def sign_in(self, name: str, password: str) -> str:
        """The token of a user, who gives it as the password. Raises NotSignedIn."""
        user = self.authenticate(password)
        if user is None or user.name != name:
            raise NotSignedIn("wrong name or key: the password is the key that `rayapp users add` printed")
        return password

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


def _entry(role: str, token: str, days: float | None) -> Entry:
    now = time.time()
    entry: Entry = {"role": role, "created": int(now), "sha256": _digest(token)}
    return entry if days is None else {**entry, "expires": int(now + days * 86_400)}


def _unknown(name: str) -> NotFound:
    return NotFound(f"no user {name!r}: see `rayapp users list`")


def _user(name: str, entry: Entry) -> User:
    expires = entry.get("expires")
    return User(
        name=name,
        role=Role(str(entry["role"])),
        created=int(entry["created"]),
        expires=None if expires is None else int(expires),
    )


def _parsed(text: bytes) -> Entries:
    """Parse the file; fail closed if it is corrupt, since guessing could admit anybody."""
    try:
        entries: Entries = json.loads(text)
        for name, entry in entries.items():
            _user(name, entry)
            bytes.fromhex(str(entry["sha256"]))
            int(entry.get("old_expires", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RayappError(
            "the user file is corrupt, so nobody can sign in: restore it, or delete it and add the users again"
        ) from None
    return entries
