"""Check of a store's integrity: the index, digests of revisions, labels against the index, and model versions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rayapp.datastore.image_names import label_name
from rayapp.errors import RayappError
from rayapp.models.store import CARD, WEIGHTS, check_weights, sha256_of
from rayapp.upkeep.garbage import orphans
from rayapp.upkeep.stored_index import HIDDEN, reading


def problems(studies: Path, workspace: Path) -> Iterator[str]:
    """Problems of the store, one sentence each. May run while the server does; every revision is read once.

    Args:
        studies: the studies folder, or a backup's.
        workspace: the workspace, or a backup's.

    Raises:
        NotFound: no server has ever opened the studies folder.
    """
    with reading(studies) as db:
        yield from _of_index(db)
        yield from _of_revisions(db, studies)
        yield from _of_labels(db, studies)
    yield from _of_models(workspace / "models")


def _of_index(db: sqlite3.Connection) -> Iterator[str]:
    for (line,) in db.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"the index is damaged: {line}; the next start rebuilds it"


def _of_revisions(db: sqlite3.Connection, studies: Path) -> Iterator[str]:
    seen = set()
    for image_id, tag, number, sha, ext in db.execute(
        "SELECT image_id, tag, number, sha, ext FROM revision ORDER BY image_id, tag, number"
    ):
        path = studies / HIDDEN / "revisions" / sha[:2] / (sha + ext)
        what = f"revision {number} of label {tag!r} of image {image_id!r}"
        if not path.exists():
            yield f"{what} is missing: restore {path.name} from a backup"
        elif path not in seen and sha256_of(path) != sha:
            yield f"{what} is damaged: restore {path.name} from a backup"
        seen.add(path)


def _of_labels(db: sqlite3.Connection, studies: Path) -> Iterator[str]:
    if not (studies / "labels").is_dir():
        return  # a backup, which has none
    for image_id, tag, ext, size, mtime_ns in db.execute("SELECT image_id, tag, ext, size, mtime_ns FROM label"):
        path = studies / "labels" / tag / label_name(image_id, ext)
        try:
            status = path.stat()
        except OSError:
            yield (
                f"the file of label {tag!r} of image {image_id!r} is missing: restore it, or the next scan records the "
                "label as removed"
            )
            continue
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            yield f"label {tag!r} of image {image_id!r} was edited by another program; the next scan imports the edit"


def _of_models(models: Path) -> Iterator[str]:
    for model in sorted(models.iterdir()) if models.is_dir() else ():
        for version in sorted(model.glob("v[0-9]*")):
            try:
                json.loads((version / CARD).read_text())
                check_weights(version / WEIGHTS)
            except (OSError, ValueError, RayappError) as error:
                yield f"version {version.name} of model {model.name!r} is damaged: {getattr(error, 'detail', error)}"
        production = model / "production"
        for served in production.read_text().split()[-1:] if production.exists() else ():
            if not (model / served / CARD).exists():
                yield f"version {served} of model {model.name!r} is in production and missing: promote another one"


def unused(studies: Path, workspace: Path) -> int:
    """Bytes of files that nothing refers to; `rayapp gc` deletes them."""
    return sum(each.size for each in orphans(studies, workspace))
