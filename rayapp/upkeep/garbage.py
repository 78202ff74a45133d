"""Garbage: unreferenced files, which crashes and ended jobs leave behind, and old model versions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayapp.datastore.index import unplaced
from rayapp.datastore.revisions import delete
from rayapp.upkeep.stored_index import HIDDEN, alone, reading

AGE_S = 24 * 3600.0
"""Age in seconds; younger files may belong to a change in progress."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """A file or folder that can be deleted: its kind, its path, and its size in bytes."""

    what: str
    path: Path
    size: int


def orphans(studies: Path, workspace: Path, *, versions: int | None = None) -> list[Garbage]:
    """Files that can be deleted, since neither the index nor a job nor production refers to them.

    Args:
        studies: the studies folder.
        workspace: the workspace.
        versions: number of newest versions of each model to keep, besides those in the history of production; None for
            all.
    """
    with reading(studies) as db:
        revisions = {sha + ext for sha, ext in db.execute("SELECT DISTINCT sha, ext FROM revision")}
        jobs = {job for (job,) in db.execute("SELECT id FROM job")}
        images = {image for (image,) in db.execute("SELECT id FROM image UNION SELECT id FROM vanished")}
        uploads = unplaced(db)
    hidden = studies / HIDDEN
    found = [
        *(_garbage("revision without a label", path) for path in _in(hidden / "revisions", "*/*", revisions)),
        *(_garbage("leftover upload", path) for path in _in(hidden / "staging", "*", uploads)),
        *(_garbage("damaged index", path) for path in hidden.glob("index.db.broken-*")),
        *(_garbage("files of a forgotten job", path) for path in _in(workspace / "runs", "*", jobs)),
        *(_garbage("checkpoints of a forgotten job", path) for path in _in(workspace / "checkpoints", "*", jobs)),
        *(_garbage("images of a forgotten job", path) for path in _in(workspace / "images", "*", jobs)),
        *(
            _garbage("uncertainty map of a removed image", path)
            for path in hidden.glob("uncertainty/*/*")
            if path.name.partition(".nii")[0] not in images
        ),
        *(_garbage("interrupted publication", path) for path in (workspace / "models").glob("*/.staged-*")),
        *_old_versions(workspace / "models", versions),
    ]
    old = time.time() - AGE_S
    return [each for each in found if each.path.lstat().st_mtime < old]


def collect(studies: Path, workspace: Path, *, versions: int | None = None) -> list[Garbage]:
    """Delete the orphans. Returns what was deleted.

    Raises:
        Conflict: a server has the folder open.
    """
    with alone(studies):
        found = orphans(studies, workspace, versions=versions)
        for each in found:
            delete(each.path)
    return found


def _in(folder: Path, pattern: str, names: set[str]) -> Iterator[Path]:
    return (path for path in sorted(folder.glob(pattern)) if path.name not in names)


def _old_versions(models: Path, versions: int | None) -> Iterator[Garbage]:
    for model in sorted(models.iterdir()) if versions is not None and models.is_dir() else ():
        production = model / "production"
        served = set(production.read_text().split()) if production.exists() else set()
        numbered = sorted(model.glob("v[0-9]*"), key=lambda path: int(path.name[1:]))
        for path in numbered[: max(0, len(numbered) - (versions or 0))]:
            if path.name not in served:
                yield _garbage(f"old version of model {model.name}", path)


def _garbage(what: str, path: Path) -> Garbage:
    size = sum(file.lstat().st_size for file in path.rglob("*")) if path.is_dir() else path.lstat().st_size
    return Garbage(what=what, path=path, size=size)
