"""DocumentFile: `datastore_v2.json`, written for MONAI Label and imported when another program has edited it.

The index is authoritative; the document follows it about a second after the last change, with a bounded delay, on its
own thread and from a read snapshot, so that no save waits for it. It is replaced by one rename and so is whole at any
moment. The digest of each version we write is committed to the index before the file appears. After a crash our own
document is therefore recognised as ours, and another program's is compared with the last one we wrote, so that only
actual edits are imported.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.index import Index, meta, set_meta
from rayapp.datastore.interfaces import Info
from rayapp.datastore.revisions import FileStamp, RevisionStore
from rayapp.errors import BadRequest, Busy, Conflict, RayappError, Unreadable
from rayapp.files.durable import replace
from rayapp.protocol import checked_name

NAME = "datastore_v2.json"
DEFAULTS = {"name": "new-dataset", "description": "New Dataset"}
DELAY_S = 1.0
PATIENCE_S = 10.0
"""The document is written `DELAY_S` after the last change, and at the latest `PATIENCE_S` after the first."""
DUTY = 20
"""Under continuous changes the thread spends at most 1 / DUTY of its time writing the document."""
TURN_S = 0.15
"""After each write, the time for which a running MONAI Label has the lock of the folder to itself before it is told of
the new document. It asks for the lock 20 times a second."""
BASES, BASE_BYTES = 4, 64 << 20
"""Earlier documents that are kept, to find the one that another program's edit is based on: those that fit into
`BASE_BYTES`, and at least `BASES`."""
_EXT = re.compile(r"(\.\w{1,10}){0,3}", re.ASCII)

Entries = dict[str, dict[str, Any]]
"""The validated `objects` of a document: {id: {"image": {"ext", "info"}, "labels": {tag: {"ext", "info"}}}}."""

log = logging.getLogger(__name__)

# SQLite assembles the objects: it releases the interpreter lock, so that saves can run meanwhile.
_ENTRY = """
SELECT i.id, '{"image": {"ext": ' || json_quote(i.ext) || ', "info": ' || i.info || '}, "labels": {' || coalesce((
  SELECT group_concat(entry, ', ') FROM (
    SELECT json_quote(tag) || ': {"ext": ' || json_quote(ext) || ', "info": ' || info || '}' AS entry
    FROM label WHERE image_id = i.id ORDER BY rowid)), '') || '}}'
FROM image AS i
"""


def entry(db: sqlite3.Connection, image_id: str) -> str | None:
    """JSON text of one image's object of the document; None for an unknown image."""
    row = db.execute(_ENTRY + " WHERE i.id = ?", (image_id,)).fetchone()
    return None if row is None else str(row[1])


def pieces(db: sqlite3.Connection) -> Iterator[str]:
    """JSON text of the whole document in MONAI Label's layout, one object per line."""
    names = {key: meta(db, key) or default for key, default in DEFAULTS.items()}
    head = json.dumps({**names, "images_dir": ".", "labels_dir": "labels"}, indent=2)
    yield head.removesuffix("\n}") + ',\n  "objects": {'
    comma = "\n    "
    for image_id, text in db.execute(_ENTRY + " ORDER BY i.id"):
        yield comma + json.dumps(image_id) + ": " + text
        comma = ",\n    "
    yield "\n  }\n}\n"


def parse(data: bytes) -> tuple[dict[str, str], Entries]:
    """Parse and validate a document. Malformed objects are left out.

    Returns:
        (name and description, validated objects).

    Raises:
        Unreadable: if the data is not such a document.
        Conflict: if its images or labels lie in another folder than the one that is open.
    """
    try:
        # MONAI Label writes NaN, which is not JSON.
        document = json.loads(data, parse_constant=lambda _: None)
        objects = document.get("objects", {}).items()
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{NAME} is not a datastore document: {type(error).__name__}") from None
    if document.get("images_dir") not in (None, "", ".") or document.get("labels_dir") not in (None, "labels"):
        raise Conflict(
            f'{NAME} must have images_dir "." and labels_dir "labels": move the files there, then correct the document'
        )
    entries = {image_id: checked for image_id, value in objects if (checked := _checked(image_id, value))}
    if len(entries) < len(objects):
        log.warning("skipped %d malformed objects of %s", len(objects) - len(entries), NAME)
    return {key: str(document.get(key, default)) for key, default in DEFAULTS.items()}, entries


def _checked(image_id: str, value: Any) -> dict[str, Any] | None:
    try:
        checked_name(image_id, "image")
        return {
            "image": _checked_data(value["image"]),
            "labels": {checked_name(t, "tag"): _checked_data(d) for t, d in value.get("labels", {}).items()},
        }
    except (BadRequest, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checked_data(value: Any) -> dict[str, Any]:
    ext, info = value.get("ext", ""), value.get("info", {})
    if not isinstance(info, dict) or not _EXT.fullmatch(ext):
        raise ValueError(ext)
    return {"ext": ext, "info": info}


def edited(old: Mapping[str, Any], new: Mapping[str, Any]) -> Info:
    """The items of `new` that `old` lacks or holds with another value."""
    return {key: value for key, value in new.items() if key not in old or old[key] != value}


def _differences(base: Entries, theirs: Entries) -> int:
    """The number of items of infos that differ."""
    both = ((base.get(image_id), theirs.get(image_id)) for image_id in base.keys() | theirs.keys())
    return sum(_different_items(_items(old), _items(new)) for old, new in both if old != new)


def _items(entry: Mapping[str, Any] | None) -> dict[tuple[str, str], Any]:
    """The items of an image's info, and of its labels' infos, by tag ("" for the image) and key."""
    if entry is None:
        return {}
    infos = {"": entry["image"]["info"], **{tag: label["info"] for tag, label in entry["labels"].items()}}
    return {(tag, key): value for tag, info in infos.items() for key, value in info.items()}


def _different_items(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> int:
    return sum(key not in old or key not in new or old[key] != new[key] for key in old.keys() | new.keys())


def _number(base: Path) -> int:
    """The number of a kept document; newer ones have higher numbers."""
    return int(base.suffix[1:])


class DocumentFile:
    """The file and the thread that writes it.

    `touch` may be called from any thread; `import_edits` and `flush` from any thread but the commit thread.
    """

    def __init__(
        self,
        studies: Path,
        *,
        index: Index,
        commit: GroupCommit,
        files: RevisionStore,
        merge: Callable[[dict[str, str], Entries, Entries], None],
    ) -> None:
        """Prepare the file; `start` begins to write it.

        Args:
            studies: the studies folder.
            index: the index the document is made from.
            commit: the writer thread of the index.
            files: where new versions of the file are staged.
            merge: `merge(names, theirs, base)` imports another program's document; `base` is the last one we wrote.
        """
        self._path = studies / NAME
        self._bases = studies / ".rayapp"
        self._advisory = FileLock(studies / ".lock", timeout=2)
        self._index = index
        self._commit = commit
        self._files = files
        self._merge = merge
        with index.reader() as db:
            self._own: list[str] = json.loads(meta(db, "documents") or "[]")
        self._seen: FileStamp | None = None
        self._unannounced: FileStamp | None = None
        self._busy = threading.Lock()
        self._wake = threading.Condition()
        self._dirty = not self._path.exists()
        self._touched = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="datastore-document", daemon=True)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def touch(self) -> None:
        """Mark the document as outdated: the index has changed."""
        with self._wake:
            self._dirty = True
            self._touched = time.monotonic()
            self._wake.notify()

    def close(self) -> None:
        """Write the document if it is outdated, then stop the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def is_foreign(self) -> bool:
        """True if the file has changed since we last wrote or read it."""
        with self._busy:
            return FileStamp.of(self._path) not in (None, self._seen)

    def import_edits(self, *, opening: bool = False) -> None:
        """Import the file if another program has written it. An unreadable file is renamed to `….broken-<time>`."""
        with self._busy:
            self._import_edits(opening)

    def flush(self) -> None:
        """Write the file now, after importing edits of other programs.

        Raises:
            Busy: another program is writing the file.
        """
        with self._busy:
            while not self._flushed():
                pass

    def announce(self) -> None:
        """Make the kernel report the document last written as modified, by rewriting its first byte, which is `{`.

        A running MONAI Label does not notice a file renamed into place, and would go on with the old content. It
        changes its memory first and then waits for the lock of the folder to write it; told meanwhile, it would read
        our document into its memory and lose that change. So this is not done under the lock, nor right after it was
        released: see `TURN_S`. A document that another program has written meanwhile is left alone.
        """
        with self._busy:
            with suppress(OSError), self._path.open("r+b") as file:
                if FileStamp.of(self._path) == self._unannounced:
                    os.pwrite(file.fileno(), b"{", 0)
            self._import_edits(opening=False)  # it has another time now, by which it is to be recognised as ours

    def _flushed(self) -> bool:
        """Import edits, then write the file; False if another program has written it meanwhile."""
        self._import_edits(opening=False)
        if FileStamp.of(self._path) not in (None, self._seen):
            raise Busy(f"another program is writing {NAME}; try again in a second")
        staged, copy = self._files.stage(".json"), self._files.stage(".json")
        try:
            with staged.open("wb") as file:
                digest = self._write(file)
            shutil.copyfile(staged, copy)
            self._remember(digest)
            # MONAI Label writes the file under the same lock, so that nothing is written between the look and the
            # rename. The stamp is taken before the rename, as a later one may be that of another program's file.
            with self._advisory:
                if FileStamp.of(self._path) not in (None, self._seen):
                    return False
                seen = FileStamp.of(staged)
                replace(staged, self._path)
                self._seen = self._unannounced = seen
            self._keep_base(copy)
            return True
        finally:
            staged.unlink(missing_ok=True)
            copy.unlink(missing_ok=True)

    def _keep_base(self, document: Path) -> None:
        """Keep a document as the newest that another program's edit may be based on; the oldest are dropped."""
        kept = self._kept()
        number = _number(kept[0]) + 1 if kept else 0
        replace(document, self._bases / f"{NAME}.{number}")
        kept.insert(0, self._bases / f"{NAME}.{number}")
        sizes = itertools.accumulate(base.stat().st_size for base in kept)
        for age, (base, total) in enumerate(zip(kept, sizes, strict=True)):
            if age >= BASES and total > BASE_BYTES:
                base.unlink(missing_ok=True)

    def _kept(self) -> list[Path]:
        """The documents that are kept, newest first."""
        kept = (base for base in self._bases.glob(f"{NAME}.*") if base.suffix[1:].isdecimal())
        return sorted(kept, key=_number, reverse=True)

    def _write(self, file: BinaryIO) -> str:
        digest = hashlib.sha256()
        with self._index.reader() as db:
            db.execute("BEGIN")
            for piece in pieces(db):
                data = piece.encode()
                digest.update(data)
                file.write(data)
        return digest.hexdigest()

    def _remember(self, digest: str) -> None:
        """Record this digest and the previous one as ours: a crash may leave either version in place."""
        self._own = [digest, *(old for old in self._own if old != digest)][:2]
        own = json.dumps(self._own)
        self._commit.do(lambda db: set_meta(db, "documents", own))

    def _import_edits(self, opening: bool) -> None:
        stamp = FileStamp.of(self._path)
        if stamp is None or stamp == self._seen:
            return
        data = self._path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._own:
            try:
                names, theirs = parse(data)
            except RayappError as error:
                if not opening and time.time_ns() - stamp.mtime_ns < DELAY_S * 1e9:
                    return  # another program may be writing it at this moment
                if isinstance(error, Conflict) and opening:
                    raise
                self._put_aside(stamp, error)
                return
            self._merge(names, theirs, self._base_of(theirs))
            self._remember(digest)
            copy = self._files.stage(".json")
            copy.write_bytes(data)
            self._keep_base(copy)
            self.touch()
        self._seen = stamp

    def _put_aside(self, stamp: FileStamp, error: RayappError) -> None:
        """Rename the unreadable document with this stamp, unless another program is writing it.

        MONAI Label empties the file before it writes it, under the lock, however long that takes.
        """
        try:
            with self._advisory:
                if FileStamp.of(self._path) != stamp:
                    return
                log.error("%s; it is renamed and written again", error.detail)
                self._path.rename(self._path.with_name(f"{NAME}.broken-{time.time_ns() // 1_000_000_000}"))
        except Timeout:
            return
        self.touch()

    def _base_of(self, theirs: Entries) -> Entries:
        """The document that theirs is based on: among those kept, the newest of those with the fewest differences."""
        return min(self._kept_bases(), key=lambda base: _differences(base, theirs), default={})

    def _kept_bases(self) -> Iterator[Entries]:
        for base in self._kept():
            with suppress(OSError, RayappError):
                yield parse(base.read_bytes())[1]

    def _run(self) -> None:
        patience, earliest = PATIENCE_S, 0.0
        while self._due(patience, earliest):
            started = time.monotonic()
            try:
                self.flush()
                ended = time.monotonic()
                time.sleep(TURN_S)
                self.announce()
            except (OSError, Timeout, RayappError, sqlite3.Error) as error:
                log.error("%s could not be written; retrying: %s", NAME, type(error).__name__)
                if self._closed:
                    return
                time.sleep(DELAY_S)
                self.touch()
                ended = time.monotonic()
            patience = max(PATIENCE_S, DUTY * (ended - started))
            earliest = ended + (DUTY - 1) * (ended - started)

    def _due(self, patience: float, earliest: float) -> bool:
        """Wait until the file should be written; False once there is nothing more to write.

        Args:
            patience: seconds after the first change at which it is written at the latest.
            earliest: monotonic time before which it is not written again, unless the store closes.
        """
        with self._wake:
            while not self._dirty and not self._closed:
                self._wake.wait()
            latest = time.monotonic() + patience
            while not self._closed:
                due = max(min(self._touched + DELAY_S, latest), earliest)
                if (rest := due - time.monotonic()) <= 0:
                    break
                self._wake.wait(rest)
            dirty, self._dirty = self._dirty, False
            return dirty
