"""Backup of a studies folder and its workspace, consistent while the server runs, and incremental; and its restoration.

A backup is a folder: `studies/.rayapp/index.db` as of one moment, the revisions that it refers to, scores, uncertainty
maps, and the ids of the volumes of archives' series; `workspace/models/` and `users.json`; and, on request, the images.
Revisions and model versions never change, so a second backup into the same folder copies only what is new. The index
is replaced last, by one rename: a backup that was cut short leaves the one before.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rayapp import __version__
from rayapp.datastore.index import set_meta
from rayapp.datastore.revisions import RevisionStore
from rayapp.datastore.series_parts import PARTS
from rayapp.errors import Conflict, NotFound
from rayapp.files.durable import make_folder, replacing
from rayapp.upkeep.stored_index import HIDDEN, alone, reading

STUDIES, WORKSPACE = "studies", "workspace"
MANIFEST = "backup.json"
"""Written last, so that a folder without it is not a complete backup."""
RESULTS = ("scores", "uncertainty", PARTS)
_VERSION = re.compile(r"v\d+")


@dataclass(kw_only=True)
class Copied:
    """Result of a backup or a restoration.

    Attributes:
        files: number of files copied.
        bytes: their size.
        kept: number of files that were there already.
        missing: names of revisions that the index refers to and that are lost; `rayapp check` says of which labels.
    """

    files: int = 0
    bytes: int = 0
    kept: int = 0
    missing: list[str] = field(default_factory=list)


def back_up(studies: Path, workspace: Path, target: Path, *, images: bool = False) -> Copied:
    """Bring a backup up to date, or begin it.

    Args:
        studies: the studies folder.
        workspace: the workspace.
        target: the backup's folder.
        images: copy the images too.

    Raises:
        NotFound: no server has ever opened the studies folder.
    """
    copied = Copied()
    hidden = target / STUDIES / HIDDEN
    make_folder(hidden)
    with replacing(hidden / "index.db") as staged:
        with reading(studies) as db, closing(sqlite3.connect(staged)) as copy:
            db.backup(copy)
        with closing(sqlite3.connect(staged)) as copy:
            copy.execute("PRAGMA journal_mode = DELETE")
            files = copy.execute("SELECT DISTINCT sha, ext FROM revision").fetchall()
            served = copy.execute("SELECT id, ext FROM image").fetchall() if images else []
        for sha, ext in files:
            name = f"{sha[:2]}/{sha}{ext}"
            if not _copy(studies / HIDDEN / "revisions", hidden / "revisions", name, copied):
                copied.missing.append(sha + ext)
        for name in RESULTS:
            _copy_all(studies / HIDDEN / name, hidden / name, copied, changing=True)
        if served:
            for path in _images(studies):
                _copy(studies, target / STUDIES, str(path.relative_to(studies)), copied, changing=True)
        _copy_models(workspace / "models", target / WORKSPACE / "models", copied)
        if (workspace / "users.json").exists():
            _copy(workspace, target / WORKSPACE, "users.json", copied, changing=True)
    with replacing(target / MANIFEST) as staged:
        staged.write_text(json.dumps({"taken": time.time(), "rayapp": __version__}))
    return copied


def restore(source: Path, studies: Path, workspace: Path) -> Copied:
    """Restore a backup into folders that no server has opened; the first start publishes the labels again.

    Args:
        source: the backup's folder.
        studies: the studies folder, empty or with the images.
        workspace: the workspace.

    Raises:
        NotFound: `source` is no complete backup.
        Conflict: the studies folder or the workspace is in use already.
    """
    index = source / STUDIES / HIDDEN / "index.db"
    if not (source / MANIFEST).is_file():
        raise NotFound(f"the folder is no complete backup: it has no {MANIFEST}")
    if (studies / HIDDEN / "index.db").exists():
        raise Conflict("the studies folder has been opened by a server: restore into one without .rayapp")
    if (workspace / "models").exists():
        raise Conflict("the workspace has models already: restore into an empty one")
    copied = Copied()
    make_folder(studies / HIDDEN)
    with alone(studies):
        RevisionStore(studies / HIDDEN)
        for name in ("revisions", *RESULTS):
            _copy_all(source / STUDIES / HIDDEN / name, studies / HIDDEN / name, copied)
        for path in _images(source / STUDIES):
            _copy(source / STUDIES, studies, str(path.relative_to(source / STUDIES)), copied)
        _copy_models(source / WORKSPACE / "models", workspace / "models", copied)
        if (source / WORKSPACE / "users.json").exists():
            _copy(source / WORKSPACE, workspace, "users.json", copied)
        with replacing(studies / HIDDEN / "index.db") as staged:
            shutil.copyfile(index, staged)
            with closing(sqlite3.connect(staged)) as db, db:
                # As after a crash in the first session: the start publishes every label whose file is not there.
                set_meta(db, "clean", "0")
                set_meta(db, "session", "0")
    return copied


def _images(studies: Path) -> Iterator[Path]:
    """The files of the folder, except hidden ones, labels and the document, which a server generates again."""
    for top in sorted(studies.iterdir()) if studies.is_dir() else ():
        if top.name.startswith(".") or top.name in ("labels", "datastore_v2.json"):
            continue
        yield from (path for path in ([top] if top.is_file() else sorted(top.rglob("*"))) if path.is_file())


def _copy_models(models: Path, target: Path, copied: Copied) -> None:
    """Copy the versions before the list of production versions, so that none of these is missing."""
    for model in sorted(models.iterdir()) if models.is_dir() else ():
        for version in sorted(model.iterdir()):
            if _VERSION.fullmatch(version.name):
                _copy_all(version, target / model.name / version.name, copied)
        if (model / "production").exists():
            _copy(model, target / model.name, "production", copied, changing=True)


def _copy_all(source: Path, target: Path, copied: Copied, *, changing: bool = False) -> None:
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            _copy(source, target, str(path.relative_to(source)), copied, changing=changing)


def _copy(source: Path, target: Path, name: str, copied: Copied, *, changing: bool = False) -> bool:
    """Copy a file, durably, unless it exists there with the same size (and, if it may change, the same time).

    Returns:
        False if there is no such file, which a running server may just have removed.
    """
    there, here = source / name, target / name
    try:
        status = there.stat()
        if here.exists():
            old = here.stat()
            if old.st_size == status.st_size and (not changing or old.st_mtime_ns == status.st_mtime_ns):
                copied.kept += 1
                return True
        make_folder(here.parent)
        with replacing(here) as staged:
            shutil.copy2(there, staged)
    except FileNotFoundError:
        return False
    copied.files += 1
    copied.bytes += status.st_size
    return True
