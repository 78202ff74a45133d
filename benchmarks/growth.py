"""How the datastore's costs grow with the number of images and of events in the click log.

    python -m benchmarks.growth [--images 100000] [--events 10000000] [--minutes 10] [--json]

The folder and its index are filled directly, half of the images labelled, until everything is there or half of the
minutes are over; the figures then say how many events there were. Run it on an idle machine with 4 GB of free disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.datastore import make_folder, milliseconds, next_random, save
from rayapp.datastore import document
from rayapp.datastore.index import MAX_WAL, Index
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.revisions import FileStamp

BATCH = 100_000
"""Rows for each transaction that fills the index."""
PAYLOAD = json.dumps(
    {"interaction": "0123456789abcdef", "request": "0123456789abcdef", "clicks": {"liver": [[1, 2, 3]]}}
)

Figures = dict[str, Any]


def fill(studies: Path, images: int, events: int, seconds: float) -> int:
    """Label half of the images, and log events, in the folder's index. Returns the number of events."""
    index = Index(studies / ".rayapp" / "index.db")
    index.writer.execute("PRAGMA synchronous = OFF")
    index.writer.execute("BEGIN")
    info = json.dumps({"label_info": [{"name": "liver", "idx": 1}], "user": "ann", "ts": 1, "archived": "0" * 64})
    rows = index.writer.execute("SELECT id FROM image WHERE seq % 2").fetchall()
    labels = studies / "labels" / "final"
    file = labels / ".seed"
    for number, (image_id,) in enumerate(rows):
        if number % 50_000 == 0:  # a file has at most 65,000 names
            file.unlink(missing_ok=True)
            file.write_bytes(b"label")
        (labels / f"{image_id}.nii.gz").hardlink_to(file)
    stamps = [FileStamp.of(labels / f"{image_id}.nii.gz") for (image_id,) in rows]
    given = [
        (i, info, f"{n:064x}", s.size, s.mtime_ns) for n, ((i,), s) in enumerate(zip(rows, stamps, strict=True)) if s
    ]
    index.writer.executemany("INSERT INTO label VALUES(?, 'final', '.nii.gz', ?, 1, ?, ?, ?, 0)", given)
    index.writer.executemany(
        "INSERT INTO revision VALUES(?1, 'final', 1, ?3, '.nii.gz', ?4, ?5, NULL, 1.0, 'ann', NULL, NULL, ?2, NULL)",
        given,
    )
    index.writer.execute("COMMIT")
    end, logged = time.monotonic() + seconds, 0
    while logged < events and time.monotonic() < end:
        index.writer.execute("BEGIN")
        part = min(BATCH, events - logged)
        index.writer.executemany(
            "INSERT INTO event(image_id, kind, payload, model, user, ts) VALUES(?, 'prompt', ?, 'm', 'ann', ?)",
            ((f"image_{(logged + n) % images:06}", PAYLOAD, float(logged + n)) for n in range(part)),
        )
        index.writer.execute("COMMIT")
        logged += part
    index.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.close()
    return logged


def wal_of_a_long_reader(store: LocalDatastore, ids: list[str]) -> Iterator[tuple[str, float]]:
    """Megabytes of the write-ahead log beside a reader that stays open, and after it has gone."""
    log = store._studies / ".rayapp" / "index.db-wal"
    with store._index.reader() as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM image").fetchone()
        end = time.monotonic() + 5
        while time.monotonic() < end and log.stat().st_size < 2 * MAX_WAL:
            store._commit.do(lambda db: db.execute("UPDATE image SET served = served + 1 WHERE seq % 10 = 0").rowcount)
        yield "wal_beside_a_reader_mb", log.stat().st_size / 1e6
    for number in range(50):
        store.update_image_info(ids[0], {"n": number})
    yield "wal_after_it_mb", log.stat().st_size / 1e6


def measure(root: Path, images: int, events: int, minutes: float) -> Figures:
    """Fill a folder and measure the datastore on it."""
    studies = make_folder(root / "studies", images)
    first, store = _timed(lambda: LocalDatastore(studies, settle=0, watch=False))
    store.close()
    logged = fill(studies, images, events, 60 * minutes / 2)
    start, store = _timed(lambda: LocalDatastore(studies, settle=0, watch=False))
    ids = store.image_ids()
    busy = ClickEvent(image_id=ids[0], kind="click", payload={"clicks": {"liver": [[1, 2, 3]]}})
    append = milliseconds(lambda: store.append_events([busy]), 100)
    again = milliseconds(lambda: store.append_events([ClickEvent(**{**vars(busy), "ts": time.time()})]), 100)
    saves = milliseconds(lambda: save(store, ids[-1]), 50)
    written, _ = _timed(store._document.flush)
    size = (studies / document.NAME).stat().st_size
    figures = {
        "images": images,
        "events": logged,
        "index_mb": (studies / ".rayapp" / "index.db").stat().st_size / 1e6,
        "first_start_s": first,
        "start_s": start,
        "append_p50_ms": float(np.percentile(append, 50)),
        "append_p99_ms": float(np.percentile(append, 99)),
        "append_with_time_p50_ms": float(np.percentile(again, 50)),
        "save_p50_ms": float(np.percentile(saves, 50)),
        "next_first_ms": float(np.median(milliseconds(lambda: store.unlabeled(order="first"), 20))),
        "next_random_ms": float(np.median(milliseconds(lambda: next_random(store), 20))),
        "unscored_one_ms": float(np.median(milliseconds(lambda: store.unscored("run", limit=1), 20))),
        "status_ms": float(np.median(milliseconds(store.status, 20))),
        "document_s": written,
        "document_mb": size / 1e6,
        # Each document is written twice: the file, and the copy with which edits are compared.
        "document_gb_a_day": 2 * size * 86_400 / max(document.DELAY_S, document.DUTY * written) / 1e9,
        **dict(wal_of_a_long_reader(store, ids)),
    }
    store.close()
    return figures


def _timed(call: Any) -> tuple[float, Any]:
    """(seconds, result) of a call."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="after half of them, no more events are logged")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.images, options.events, options.minutes)
    if options.json:
        print(json.dumps({"benchmark": "growth", **figures}))
        return
    table = Table("figure", "value", title=f"{figures['images']:,} images, {figures['events']:,} events")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
