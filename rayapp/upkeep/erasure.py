"""Erasure of one image: everything stored about it is removed, and remains that cannot be removed here are listed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rayapp.datastore.document import NAME
from rayapp.datastore.folder_scan import IMAGE_EXTS, voxels_of
from rayapp.datastore.image_names import label_name
from rayapp.datastore.index import OF_REMOVED, Index
from rayapp.datastore.revisions import delete
from rayapp.datastore.series_parts import PARTS, forget_image, series_of
from rayapp.errors import NotFound
from rayapp.files.durable import replacing, sync
from rayapp.imaging.dicom_instances import uid_of
from rayapp.protocol import checked_name
from rayapp.upkeep.stored_index import HIDDEN, alone, reading

TABLES = (
    *("label", "revision", "event", "lease", "scored", "score", "feature", "segmentation", "doomed", "image_file"),
    "reopened",
)
"""Tables with a column `image_id`."""


def erase(studies: Path, workspace: Path, image_id: str) -> list[str]:
    """Remove the image, its labels with their history, clicks, scores, leases, uncertainty maps and infos.

    May be repeated, for example after an interruption.

    Args:
        studies: the studies folder; no server may have it open.
        workspace: the workspace.
        image_id: the image's id.

    Returns:
        The remains, one sentence each.

    Raises:
        NotFound: nothing is stored about such an image.
        Conflict: a server has the studies folder open.
    """
    checked_name(image_id, "image")
    with reading(studies):  # raises where there is nothing, or of another version
        pass
    with alone(studies):
        files = list(_files(studies, workspace, image_id))
        with closing(Index(studies / HIDDEN / "index.db")) as index:
            rows, revisions = _erase_rows(index.writer, image_id)
        files += [path for name in revisions if (path := studies / HIDDEN / "revisions" / name[:2] / name).exists()]
        files += (studies / HIDDEN).glob("index.db.broken-*")  # which hold its rows too
        if not rows and not files:
            raise NotFound(f"nothing is stored about an image {image_id[:200]!r}")
        for path in files:
            delete(path)
            sync(path.parent)
        forget_image(studies / HIDDEN / PARTS, image_id)
        for path in (*studies.glob(f"{NAME}*"), *(studies / HIDDEN).glob(f"{NAME}*")):
            _edit_document(path, image_id)
        for path in sorted((studies / HIDDEN / "scores").glob("**/*.parquet")):
            _erase_scores(path, image_id)
    return list(_left(studies, workspace, image_id))


def _files(studies: Path, workspace: Path, image_id: str) -> Iterator[Path]:
    names = {label_name(image_id, ext) for ext in IMAGE_EXTS}
    for folder in (studies, *(studies / "labels").glob("*"), *(studies / HIDDEN / "uncertainty").glob("*")):
        for path in (folder / name for name in {*names, image_id + ".nii.gz"}):
            if path.exists():
                yield from _with_voxels(path)
    # The viewer's copy of an image has this name; that of the image's earlier states is in the same folder.
    copies = workspace / "retrieved" / series_of(image_id), workspace / "viewer" / uid_of("series", image_id)
    for path in (*copies, *(workspace / "images").glob(f"*/{image_id}.*")):
        if path.exists():
            yield path


def _with_voxels(path: Path) -> Iterator[Path]:
    """The file and, for a detached header, the file with its voxels."""
    voxels = voxels_of(path)
    if voxels is not None and voxels.parent == path.parent:
        yield voxels
    yield path


def _erase_rows(db: sqlite3.Connection, image_id: str) -> tuple[int, list[str]]:
    """Delete the image's rows, and overwrite them on disk.

    Returns:
        (number of rows, names of the revision files that no other image has).
    """
    db.execute("PRAGMA secure_delete = ON")
    db.execute("BEGIN IMMEDIATE")
    # Earlier images of this name, which were removed, are erased with it.
    condition = f"(image_id = ? OR {OF_REMOVED})"
    names = [
        name for (name,) in db.execute(f"SELECT DISTINCT image_id FROM revision WHERE {condition}", (image_id,) * 3)
    ]
    revisions = db.execute(
        "SELECT DISTINCT sha || ext FROM revision AS r WHERE image_id IN (SELECT value FROM json_each(:names))"
        " AND NOT EXISTS (SELECT 1 FROM revision AS o WHERE o.sha = r.sha AND o.ext = r.ext"
        " AND o.image_id NOT IN (SELECT value FROM json_each(:names)))",
        {"names": json.dumps(names)},
    ).fetchall()
    db.execute(f"DELETE FROM revision WHERE {OF_REMOVED}", (image_id,) * 2)
    rows = sum(db.execute(f"DELETE FROM {table} WHERE image_id = ?", (image_id,)).rowcount for table in TABLES[:-1])
    rows += sum(
        db.execute(f"DELETE FROM {table} WHERE id = ?", (image_id,)).rowcount for table in ("image", "vanished")
    )
    db.execute("DELETE FROM reopened WHERE image_id = ?", (image_id,))  # also what the triggers have added
    for job, text in db.execute("SELECT id, record FROM job WHERE instr(record, ?)", (image_id,)).fetchall():
        db.execute("UPDATE job SET record = ? WHERE id = ?", (json.dumps(_without(json.loads(text), image_id)), job))
    db.execute("COMMIT")
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return rows, [name for (name,) in revisions]


def _without(value: Any, image_id: str) -> Any:
    """The value without texts about the image and entries under its id."""
    if isinstance(value, dict):
        return {key: _without(each, image_id) for key, each in value.items() if key != image_id}
    if isinstance(value, list):
        return [
            _without(each, image_id)
            for each in value
            if each != image_id and not (isinstance(each, str) and f"{image_id}:" in each)
        ]
    return value


def _edit_document(path: Path, image_id: str) -> None:
    try:
        document = json.loads(path.read_bytes())
        if document["objects"].pop(image_id, None) is None:
            return
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, AttributeError):  # no document: the next start writes a new one
        delete(path)
        return
    with replacing(path) as staged:
        staged.write_text(json.dumps(document))


def _erase_scores(path: Path, image_id: str) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    kept = table.filter(pc.not_equal(table["image"], image_id))
    if len(kept) < len(table):
        with replacing(path) as staged:
            pq.write_table(kept, staged)


def _left(studies: Path, workspace: Path, image_id: str) -> Iterator[str]:
    folders = [path.name for path in sorted(studies.rglob(image_id)) if path.is_dir() and HIDDEN not in path.parts]
    if folders or _in_tree(studies):
        yield "DICOM files in subfolders of the studies folder are left as they are: delete the series' files there"
    runs = [
        request.parent.name
        for request in sorted((workspace / "runs").glob("*/request.json"))
        if f"{image_id}." in request.read_text() or f'"{image_id}"' in request.read_text()
    ]
    if runs:
        yield f"trainings that used the image, with pictures and lists of it: {', '.join(runs)}; delete them in runs/"
        trained = [
            f"{card.parent.parent.name} {card.parent.name}"
            for card in sorted((workspace / "models").glob("*/v*/card.json"))
            if json.loads(card.read_text()).get("job") in runs
        ]
        if trained:
            yield f"model versions that were trained with it: {', '.join(trained)}"
    if any((studies / HIDDEN / "staging").glob("*")):
        yield "unfinished uploads, which have no names, are left in .rayapp/staging: rayapp gc deletes old ones"
    yield "backups, sessions, the server's log, and labels sent to a DICOM archive are not touched"


def _in_tree(studies: Path) -> bool:
    return any(path.is_dir() and not path.name.startswith(".") and path.name != "labels" for path in studies.iterdir())
