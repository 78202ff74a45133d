"""Loss of power at any moment: what a workload asked of the disk is recorded, and replayed with parts of it lost.

Python's calls that change folders are recorded in order; a file's bytes survive from its sync on, a folder's entries
from the folder's sync on. Until then any subset of them may be lost (Pillai et al., All File Systems Are Not Created
Equal, 2014). SQLite's files are taken as of its last commit: with `synchronous=FULL` that is what it guarantees.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

Inode = int
ROOT: Inode = 0
DATABASE = ("index.db", "index.db-wal", "index.db-shm", "index.db-journal", "lock", ".lock")
"""Names that are not recorded as files: those of SQLite are taken from its commits."""


class Killed(BaseException):
    """The process is dead: nothing is cleaned up."""


@dataclass(frozen=True)
class Event:
    """One call.

    Attributes:
        kind: "add", "move" or "remove" an entry, "sync" a file or folder, "commit" the index, or "ack" for the caller.
        folder: the folder whose entries change, or that is synced.
        name: of the entry.
        inode: that the entry is of, or that is synced.
        data: True for an added folder; where an entry was moved from, as (folder, name); bytes and time of the synced
            file; the files of the database; what the caller was told.
    """

    kind: str
    folder: Inode = ROOT
    name: str = ""
    inode: Inode = ROOT
    data: Any = None


@dataclass
class Tree:
    """Files and folders as they lie on a disk."""

    entries: dict[Inode, dict[str, Inode]] = field(default_factory=lambda: {ROOT: {}})
    bytes: dict[Inode, bytes] = field(default_factory=dict)
    stamps: dict[Inode, int] = field(default_factory=dict)
    database: tuple[Inode, dict[str, bytes]] | None = None

    def write(self, inode: Inode, path: Path, files: dict[Inode, Path]) -> None:
        """Write a folder and all below it; two names of one file become hard links."""
        path.mkdir(exist_ok=True)
        for name, child in self.entries[inode].items():
            if child in self.entries:
                self.write(child, path / name, files)
            elif child in files:
                os.link(files[child], path / name)
            else:
                (path / name).write_bytes(self.bytes.get(child, b""))
                os.utime(path / name, ns=(self.stamps.get(child, 0),) * 2)
                files[child] = path / name
        if self.database and self.database[0] == inode:
            for name, data in self.database[1].items():
                (path / name).write_bytes(data)


class PowerRecorder:
    """Records what happens below a folder, from what lies there at first, which is durable."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self._root = str(root)
        self.events: list[Event] = []
        self._known: dict[str, Inode] = {}
        self._stats: dict[str, os.stat_result] = {}
        self.first = Tree()
        self.dies_at: int | None = None
        """Number of events at which the process dies: from then on every call raises `Killed`."""
        self._look(self._begin)
        self._patch(patch)

    # Recording

    def _begin(self, folder: Inode, name: str, path: str, inode: Inode) -> None:
        self.first.entries[folder][name] = inode
        if stat.S_ISDIR(self._stats[path].st_mode):
            self.first.entries[inode] = {}
        else:
            self.first.bytes[inode] = Path(path).read_bytes()
            self.first.stamps[inode] = self._stats[path].st_mtime_ns

    def _live(self) -> None:
        if self.dies_at is not None and len(self.events) >= self.dies_at:
            raise Killed

    def _created(self, folder: Inode, name: str, path: str, inode: Inode) -> None:
        self.events.append(Event("add", folder, name, inode, stat.S_ISDIR(self._stats[path].st_mode)))

    def _look(self, new: Callable[[Inode, str, str, Inode], None]) -> None:
        """Find the entries that were created since the last look."""
        folders = [(self._root, ROOT)]
        while folders:
            path, folder = folders.pop()
            for entry in sorted(os.scandir(path), key=lambda each: each.name):
                if entry.name in DATABASE:
                    continue
                if entry.path not in self._known:
                    self._stats[entry.path] = entry.stat(follow_symlinks=False)
                    self._known[entry.path] = entry.inode()
                    new(folder, entry.name, entry.path, entry.inode())
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, entry.inode()))

    def _inode(self, path: str) -> Inode:
        return ROOT if path == self._root else os.lstat(path).st_ino

    def _below(self, path: Any) -> bool:
        return str(path).startswith(self._root + "/") and Path(path).name not in DATABASE

    def _add(self, path: Any) -> None:
        path = str(path)
        self._known[path] = self._inode(path)
        is_folder = Path(path).is_dir()
        self.events.append(Event("add", self._inode(_folder(path)), Path(path).name, self._known[path], is_folder))

    def _remove(self, path: Any, parent: Inode) -> None:
        self.events.append(Event("remove", parent, Path(path).name, self._known.pop(str(path), ROOT)))

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir")}

        def moved(call: str) -> Callable[..., None]:
            def move(source: Any, target: Any, **given: Any) -> None:
                self._live()
                if not self._below(target):
                    real[call](source, target, **given)
                    return
                self._look(self._created)
                parent = self._inode(_folder(source))
                real[call](source, target, **given)
                below = [known for known in self._known if known.startswith(f"{source}/")]
                for known in below:
                    self._known[str(target) + known.removeprefix(str(source))] = self._known.pop(known)
                inode = self._known[str(target)] = self._known.pop(str(source))
                folder, name = _folder(target), Path(target).name
                come = parent, Path(source).name
                self.events.append(Event("move", self._inode(folder), name, inode, come))

            return move

        def link(source: Any, target: Any, **given: Any) -> None:
            self._live()
            self._look(self._created)
            real["link"](source, target, **given)
            if self._below(target):
                self._add(target)

        def gone(name: str) -> Callable[..., None]:
            def remove(path: Any, **given: Any) -> None:
                self._live()
                if given.get("dir_fd") is not None:
                    path = _open_path(given["dir_fd"]) + f"/{path}"
                if self._below(path):
                    self._look(self._created)
                    self._remove(path, self._inode(_folder(path)))
                real[name](path)

            return remove

        def fsync(descriptor: int) -> None:
            self._live()
            path = _open_path(descriptor)
            if path == self._root or self._below(path):
                self._look(self._created)
                inode, is_folder = self._inode(path), Path(path).is_dir()
                data = None if is_folder else (Path(path).read_bytes(), Path(path).stat().st_mtime_ns)
                self.events.append(Event("sync", inode, path, inode, data))
            real["fsync"](descriptor)

        for name in ("rename", "replace"):
            patch.setattr(os, name, moved(name))
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, gone(name))
        patch.setattr(os, "link", link)
        patch.setattr(os, "fsync", fsync)
        connect, recorder = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            """Records the files of the database after each commit."""

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                cursor = super().execute(sql, *args)
                if sql.startswith(("COMMIT", "PRAGMA journal_mode")):
                    recorder.committed(self)
                return cursor

            def executescript(self, sql: str) -> sqlite3.Cursor:
                cursor = super().executescript(sql)
                recorder.committed(self)
                return cursor

        patch.setattr(sqlite3, "connect", lambda *args, **given: connect(*args, **{**given, "factory": Connection}))

    def committed(self, db: sqlite3.Connection) -> None:
        """Record the files of a database below the folder."""
        (path,) = (row[2] for row in sqlite3.Connection.execute(db, "PRAGMA database_list") if row[1] == "main")
        if not path.startswith(self._root + "/"):
            return
        self._look(self._created)
        files = {side: Path(path + side) for side in ("", "-wal")}
        data = {Path(path).name + side: file.read_bytes() for side, file in files.items() if file.exists()}
        self.events.append(Event("commit", self._inode(_folder(path)), data=data))

    def acknowledge(self, what: Any) -> None:
        """The caller was told this."""
        self.events.append(Event("ack", data=what))

    # Replaying

    def after(self, number: int, lost: Callable[[Event], bool]) -> tuple[Tree, list[Any]]:
        """The disk after so many events, and what was acknowledged by then.

        Args:
            number: of events.
            lost: whether a change of a folder's entries that was not synced is lost.
        """
        tree = Tree(
            {inode: dict(names) for inode, names in self.first.entries.items()},
            dict(self.first.bytes),
            dict(self.first.stamps),
        )
        told: list[Any] = []
        waiting: list[Event] = []
        for event in self.events[:number]:
            match event.kind:
                case "add" | "move" | "remove":
                    waiting.append(event)
                    if event.kind == "add" and event.data:
                        tree.entries.setdefault(event.inode, {})
                case "sync" if event.data is None:
                    waiting = _survive(tree, waiting, event.folder)
                case "sync":
                    tree.bytes[event.inode], tree.stamps[event.inode] = event.data
                case "commit":
                    tree.database = event.folder, event.data
                    # SQLite syncs the folder of its files when it creates them.
                    waiting = _survive(tree, waiting, event.folder)
                case "ack":
                    told.append(event.data)
        for event in waiting:
            if not lost(event):
                _apply(tree, event)
        return tree, told

    def prefixes(self, most: int, random: Random) -> list[int]:
        """At most so many numbers of events, the last among them."""
        numbers = range(len(self.events) + 1)
        return [*sorted(random.sample(numbers[:-1], min(most, len(numbers) - 1))), numbers[-1]]


def _folder(path: Any) -> str:
    return str(Path(path).parent)


def _open_path(descriptor: int) -> str:
    """The path of an open file."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _survive(tree: Tree, waiting: list[Event], folder: Inode) -> list[Event]:
    """Apply the changes of a folder's entries, which were synced. Returns those that still may be lost."""
    left = []
    for event in waiting:
        if folder == event.folder or (event.kind == "move" and folder == event.data[0]):
            _apply(tree, event)
        else:
            left.append(event)
    return left


def _apply(tree: Tree, event: Event) -> None:
    names = tree.entries.setdefault(event.folder, {})
    if event.kind == "remove":
        if names.get(event.name) == event.inode:
            del names[event.name]
        return
    if event.kind == "move":
        folder, name = event.data
        if tree.entries.get(folder, {}).get(name) == event.inode:
            del tree.entries[folder][name]
    names[event.name] = event.inode
