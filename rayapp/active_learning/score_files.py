"""Files with the results of scoring jobs.

`<studies>/.rayapp/scores/<job>.parquet` is a table with one row per image, readable with pandas or pyarrow; while the
job runs it is a folder of parts. `<studies>/.rayapp/uncertainty/<method>/<image>.nii.gz` is the newest uncertainty map
of an image on its own voxel grid, with 255 for the largest possible entropy. Files are written atomically, by a rename.
One process writes the table of a job; uncertainty maps are written by whichever worker scored the image.
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

from rayapp.files.durable import make_folder, replacing
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
"""One row per image. Measures are those of `rayapp.active_learning.uncertainty.Measures`; `slices_*` hold the entropy
of each slice across an axis of the image, relative to the largest possible entropy and summed over voxels."""


def append_rows(studies: Path, job: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a running job's table, durably."""
    folder = _table(studies, job)
    make_folder(folder)
    write_table(
        pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), folder / f"part-{secrets.token_hex(8)}.parquet"
    )


def merge_parts(studies: Path, job: str) -> None:
    """Merge the parts of an ended job's table into one file. Idempotent."""
    folder, table = _table(studies, job), _table(studies, job).with_suffix(".parquet")
    if not folder.is_dir():
        return
    if not table.exists():
        parts = [pq.read_table(part, schema=SCHEMA) for part in sorted(folder.glob("part-*.parquet"))]
        if parts:
            write_table(pa.concat_tables(parts).sort_by("ts"), table)
    shutil.rmtree(folder)


def uncertainty_file(studies: Path, method: str, image_id: str) -> Path:
    """Path of the newest uncertainty map of an image, whether it exists or not."""
    name = checked_name(image_id, "image") + EXT
    return studies / ".rayapp" / "uncertainty" / checked_name(method, "scoring method") / name


def save_uncertainty(studies: Path, method: str, image_id: str, levels: Segmentation) -> None:
    """Save an image's uncertainty map, in place of the one before."""
    target = uncertainty_file(studies, method, image_id)
    make_folder(target.parent)
    with replacing(target) as staged:
        staged.write_bytes(encode_segmentation(levels, EXT, dtype=np.dtype(np.uint8)))


def _table(studies: Path, job: str) -> Path:
    return studies / ".rayapp" / "scores" / checked_name(job, "job")


def write_table(table: pa.Table, target: Path) -> None:
    """Write a table as Parquet, durably and atomically."""
    with replacing(target) as staged:
        pq.write_table(table, staged)
