"""Results: what scoring found, as files that outlast the server.

`<studies>/.rayapp/scores/<job>.parquet` is a table of one row per image, readable with pandas or pyarrow; while the job
runs it is a folder of parts. `<studies>/.rayapp/uncertainty/<method>/<image><ext>` is the newest uncertainty of an
image on its own grid, 255 for the most there can be. Files appear whole, by a rename. One process writes the table of
a job; maps are written by whoever scored the image.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.files.durable import replacing
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.protocol import checked_name

EXT = ".nii.gz"
_FIGURES = ("entropy", "mutual_information", "variance", "volume_variation", "dice", "millilitres")
SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("image", "job", "method", "model", "version", "options")],
        ("ts", pa.float64()),
        ("seconds", pa.float32()),
        ("samples", pa.int32()),
        ("score", pa.float64()),
        *[(name, pa.float64()) for name in _FIGURES],
        ("structures", pa.list_(pa.struct([("name", pa.string()), *[(name, pa.float64()) for name in _FIGURES]]))),
        *[(f"slices_{axis}", pa.list_(pa.float32())) for axis in "ijk"],
    ]
)
"""One row per image: figures as in `rayapp.active_learning.uncertainty.Measures`; `slices_*` hold the entropy in each
slice across an axis of the image, in voxels of the most there can be."""


def append(studies: Path, job: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Durably add rows to a running job's table."""
    folder = _table(studies, job)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(
        pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), folder / f"part-{secrets.token_hex(8)}.parquet"
    )


def seal(studies: Path, job: str) -> None:
    """Make one file of an ended job's parts; a second time, or without parts, it does nothing."""
    folder, whole = _table(studies, job), _table(studies, job).with_suffix(".parquet")
    if not folder.is_dir():
        return
    if not whole.exists():
        parts = [pq.read_table(part, schema=SCHEMA) for part in sorted(folder.glob("part-*.parquet"))]
        if parts:
            write_table(pa.concat_tables(parts).sort_by("ts"), whole)
    shutil.rmtree(folder)


def uncertainty_file(studies: Path, method: str, image_id: str) -> Path:
    """Where the newest map of an image is, if there is one."""
    name = checked_name(image_id, "image") + EXT
    return studies / ".rayapp" / "uncertainty" / checked_name(method, "scoring method") / name


def keep_uncertainty(studies: Path, method: str, image_id: str, levels: Segmentation) -> None:
    """Replace the map of an image."""
    target = uncertainty_file(studies, method, image_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as staged:
        staged.write_bytes(encode_segmentation(levels, EXT, dtype=np.dtype(np.uint8)))


def _table(studies: Path, job: str) -> Path:
    return studies / ".rayapp" / "scores" / checked_name(job, "job")


def write_table(table: pa.Table, target: Path) -> None:
    """Write a Parquet file, durably."""
    with replacing(target) as staged:
        pq.write_table(table, staged)
