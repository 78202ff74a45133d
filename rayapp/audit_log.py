"""AuditLog: who did what on a server, in an append-only log whose records are chained by their digests.

A record has no patient's data: an image is in it as a keyed digest of its id, since ids are names of files or UIDs. Who
knows an id, and the key in the workspace, can look for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from rayapp.files.durable import make_folder, replacing, sync

Fields = Mapping[str, str | int | None]
Record = dict[str, Any]
START = "0" * 64
"""The digest before the first record's."""
_TAIL = 1 << 16
"""Bytes at the end of a file in which its last record lies: a record is far shorter."""


class AuditLog:
    """Records as lines of JSON, in a file for each month; only the server's user can read them.

    Each has under `previous` the digest of the record before it, and under `digest` the SHA-256 of itself: nobody can
    change, insert or remove a record without changing all later digests. Several processes may append. Thread-safe.
    """

    @classmethod
    def of(cls, workspace: Path) -> AuditLog:
        """The audit log of the server with this workspace."""
        return cls(workspace / "audit")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._secret = b""
        self._known: set[str] = set()
        """Names of files whose entries are durable."""

    def pseudonym(self, image_id: str) -> str:
        """An image's stand-in in the records: 16 hexadecimal digits, different on every server."""
        if not self._secret:
            path = self._folder / "key"
            with self._writing():
                if not path.exists() or path.stat().st_size == 0:  # left empty by a crash of an earlier version
                    with replacing(path) as staged, _private(staged, os.O_EXCL) as file:
                        file.write(secrets.token_bytes(32))
            self._secret = path.read_bytes()
        return hmac.digest(self._secret, image_id.encode(errors="surrogatepass"), "sha256").hex()[:16]

    def append(self, entries: Sequence[Fields]) -> None:
        """Append records, which are durable on return. Fields that are None are left out."""
        with self._writing():
            previous, number, cut = self._last()
            now = datetime.now(UTC)
            path = self._folder / f"{now:%Y-%m}.jsonl"
            lines = ["\n"] if cut and path == self._files()[-1] else []  # a crash left half a line
            for entry in entries:
                number += 1
                given = {name: value for name, value in entry.items() if value is not None}
                record = {"number": number, "time": now.isoformat(timespec="milliseconds"), **given}
                record["previous"] = previous
                record["digest"] = previous = _digest(record)
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            with _private(path, os.O_APPEND) as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            if path.name not in self._known:  # also if it was there: whoever created it may have died before
                sync(self._folder)
                self._known.add(path.name)

    def records(self) -> Iterator[Record]:
        """All intact records, oldest first."""
        for _, record in self._lines():
            if record is not None:
                yield record

    def problems(self, head: str | None = None) -> Iterator[str]:
        """The faults of the log, in one line each; nothing if every record is as it was written.

        Args:
            head: digest of a record that was noted at an earlier time, which must be there still.
        """
        previous, number, met = START, 0, head in (None, START)
        for place, record in self._lines():
            if record is None:
                yield f"{place}: not a record: half a line that a crash left, unless records are missing too"
                continue
            met = met or record.get("digest") == head
            if record.get("digest") != _digest(record):
                yield f"{place}: record {record.get('number')} was changed after it was written"
            elif (record["previous"], record["number"]) != (previous, number + 1):
                yield f"{place}: records between {number} and {record['number']} are missing or were changed"
            previous, number = str(record.get("digest")), int(record.get("number", number + 1))
        if not met:
            yield f"there is no record with the digest {head}: the log was cut off before it, or replaced"

    def head(self) -> str:
        """Digest of the newest record, to be noted elsewhere: a later check finds whether records are missing."""
        return self._last()[0]

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.jsonl"))

    def _lines(self) -> Iterator[tuple[str, Record | None]]:
        """Each line's place, and its record; None if it is not one."""
        for path in self._files():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{path.name}:{number}", _parsed(line)

    def _last(self) -> tuple[str, int, bool]:
        """Digest and number of the newest record, and whether half a line follows it."""
        for path in reversed(self._files()):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                lines = file.read().splitlines(keepends=True)
            for line in reversed(lines):
                if (record := _parsed(line)) is not None:
                    return str(record["digest"]), int(record["number"]), not lines[-1].endswith(b"\n")
        return START, 0, False

    def _writing(self) -> FileLock:
        if not self._folder.is_dir():
            make_folder(self._folder)
            self._folder.chmod(0o700)
        return FileLock(self._folder / "lock", mode=0o600)


def by_command(action: str, **fields: str | int | None) -> Fields:
    """The fields of something that was done on the command line, by this user of the machine."""
    import getpass

    with contextlib.suppress(OSError, KeyError):
        return {"user": f"{getpass.getuser()} (command line)", "action": action, "outcome": "done", **fields}
    return {"user": f"{os.getuid()} (command line)", "action": action, "outcome": "done", **fields}


def age_of(record: Record) -> float:
    """Seconds since a record was written."""
    return time.time() - datetime.fromisoformat(record["time"]).timestamp()


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"digest", "number", "previous"} <= record.keys() else None


def _digest(record: Record) -> str:
    text = json.dumps({name: value for name, value in record.items() if name != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _private(path: Path, flag: int) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600), "wb")
