"""UserStore: who may come in on a server with `--auth token`, and as what."""

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

from rayapp.datastore.commit import sync
from rayapp.errors import Conflict, NotFound, RayappError
from rayapp.protocol import Role, checked_name

Entry = dict[str, str | int]
Entries = dict[str, Entry]
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class User:
    """A caller; `created` is in whole seconds since 1970, 0 for the one user of a server without authentication."""

    name: str
    role: Role
    created: int = 0


class UserStore:
    """A JSON file that only its owner can read: per name the role and the SHA-256 digest of the token.

    A plain digest is right here: salt and slow hashing protect passwords, which people choose and so can be guessed
    from a list. A token is 256 random bits: there is nothing to guess, and every request has to be checked fast.

    Any number of processes may hold a store on the same file: each sees the others' changes at its next call.
    Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._entries: Entries = {}

    def add(self, name: str, role: Role) -> str:
        """Let a user in; durable on return. The token returned is kept nowhere: it can be shown only now.

        Raises:
            BadRequest: if the name is not a valid one.
            Conflict: if the name exists.
        """
        checked_name(name, "user")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._writing():
            entries = self._read()
            if name in entries:
                raise Conflict(f"user {name!r} exists already; revoke it first to give it a new token")
            self._write({**entries, name: {"role": role.value, "created": int(time.time()), "sha256": _digest(token)}})
        return token

    def revoke(self, name: str) -> None:
        """Make a user's token worthless; durable on return. Raises NotFound if there is no such user."""
        with self._writing():
            entries = self._read()
            if name not in entries:
                raise NotFound(f"there is no user {name!r}; `rayapp users list` shows them")
            self._write({other: entry for other, entry in entries.items() if other != name})

    def authenticate(self, token: str) -> User | None:
        """The user whose token this is. Takes as long whoever's it is, so that its time says nothing of the digests."""
        digest, found = _digest(token), None
        for name, entry in self._read().items():
            if hmac.compare_digest(digest, str(entry["sha256"])):
                found = _user(name, entry)
        return found

    def list(self) -> list[User]:
        """All users by name."""
        return [_user(name, entry) for name, entry in sorted(self._read().items())]

    def _writing(self) -> FileLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self._path}.lock", mode=0o600)

    def _read(self) -> Entries:
        """What the file holds now; parsed again only if it is not the file it was."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    # Of the open file, so that the stamp is of the bytes read, whatever replaces the file meanwhile.
                    status = os.fstat(file.fileno())
                    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                    if stamp != self._seen:
                        self._entries = _parsed(file.read())
                        self._seen = stamp
            except FileNotFoundError:
                self._entries, self._seen = {}, None
            return self._entries

    def _write(self, entries: Entries) -> None:
        """Replace the file as a whole; the caller holds the file lock, so the draft is nobody else's."""
        draft = self._path.with_name(f".{self._path.name}.draft")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(entries, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        sync(self._path.parent)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _user(name: str, entry: Entry) -> User:
    return User(name=name, role=Role(str(entry["role"])), created=int(entry["created"]))


def _parsed(text: bytes) -> Entries:
    """Nobody comes in on a damaged file: guessing would open the door."""
    try:
        entries: Entries = json.loads(text)
        for name, entry in entries.items():
            _user(name, entry)
            bytes.fromhex(str(entry["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RayappError("the file of users is damaged: restore it, or remove it and add the users again") from None
    return entries
