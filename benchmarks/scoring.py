"""Throughput of image scoring, and latency of choosing the next image.

    python -m benchmarks.scoring [--json] [--images 16] [--samples 8] [--actors 1,2] [--pool 100000]

Scores generated torsos with the shipped segmentation model by Monte Carlo dropout, on a local Ray node without a
server, with each number of single-threaded actors; one image per actor is not timed, since starting a process takes
seconds. The target is a speed-up of 0.9 times the number of actors, on as many idle cores. Then every strategy chooses
the next of `--pool` images, which are all scored and a fifth of them labelled; the budget is 50 ms, also for the first
choice after a start.

With `--peer-python` and `--peer-app` (the Python interpreter that MONAI Label is installed for, and its radiology app)
the same images are also scored by MONAI Label's epistemic method with the same network, window and number of samples;
it scores one image at a time, with `--peer-threads` threads. Starting processes and loading networks is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peer import ask
from rayapp.active_learning.strategies import strategies
from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.imaging.phantom import phantom
from rayapp.jobs.image_work import ImageWork
from rayapp.jobs.pool import ImageDone
from rayapp.protocol import JobKind

SHAPE = (96, 80, 64)
CLASSES = 5
MODEL, DROPOUT = "segmentation", 0.1


def studies(folder: Path, count: int) -> Path:
    """Write generated torsos into a new folder; returns the folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        volume, _ = phantom(6_000_000 + number, shape=SHAPE)
        nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(folder / f"torso_{number}.nii.gz")
    return folder


def throughput(settings: Settings, actors: list[int], images: int, samples: int) -> list[dict[str, Any]]:
    """Images per second with each number of actors."""
    import ray

    from actors.datastore import start_datastore
    from actors.scoring import RayScoringBackend

    rows: list[dict[str, Any]] = []
    datastore = start_datastore(settings)
    ids = ray.get(datastore.image_ids.remote())
    work = ImageWork(
        job_id="benchmark",
        kind=JobKind.SCORING,
        name="epistemic",
        model=MODEL,
        version="v1",
        user="benchmark",
        request={"samples": samples, "dropout": DROPOUT, "batch": 1},
    )
    for count in actors:
        ends: list[float] = []

        def done(outcome: ImageDone, ends: list[float] = ends) -> None:
            if outcome.failure:
                raise RuntimeError(outcome.failure)
            ends.append(time.perf_counter())

        # Each actor's first image includes its start, and is not timed.
        RayScoringBackend(settings, datastore)(
            work, [*ids[-count:], *ids[:images]], workers=count, stop=threading.Event(), done=done
        )
        per_second = (len(ends) - count) / (ends[-1] - ends[count - 1])
        ratio = per_second / rows[0]["images_per_s"] if rows else 1.0
        rows.append({"who": f"{count} actors", "images_per_s": per_second, "of_ideal": ratio * actors[0] / count})
    ray.kill(datastore)
    return rows


def peer(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """Images per second of MONAI Label's method."""
    import torch
    from safetensors.torch import load_file

    from rayapp.models.store import ModelStore

    version = ModelStore.of(settings).production(MODEL)
    assert version is not None
    with tempfile.NamedTemporaryFile(suffix=".pt") as weights:
        torch.save(load_file(version.weights), weights.name)
        request = {
            "app": str(given.peer_app),
            "images": str(settings.studies),
            "weights": weights.name,
            "samples": given.samples,
            "dropout": DROPOUT,
            **{key: version.card[key] for key in ("network", "spacing", "roi_size")},
        }
        found = ask("peer_scoring.py", request, python=given.peer_python, threads=given.peer_threads)
    return {"who": f"MONAI Label, {given.peer_threads} threads", "images_per_s": found["images_per_s"]}


def choosing(folder: Path, pool: int) -> list[dict[str, Any]]:
    """Latency in ms of choosing one of `pool` scored images by each strategy, including the durable lease.

    In a store just opened: of the first call (`first_ms`) and of 30 more, with processor times (`first_cpu_ms`,
    `cpu_ms`).
    """
    folder.mkdir()
    LocalDatastore(folder, watch=False).close()
    random = np.random.default_rng(0)
    ids = [f"image_{number:06}" for number in range(pool)]
    for number, image in enumerate(ids):
        (folder / f"{image}.nii.gz").write_bytes(b"x")
        if number % 5 == 0:
            (folder / "labels" / "final" / f"{image}.nii.gz").write_bytes(b"x")
    names = ["tta", "epistemic", "foreground", *(f"entropy:structure {n}" for n in range(CLASSES))]
    with closing(sqlite3.connect(folder / ".rayapp" / "index.db", timeout=30)) as db, db:
        db.executemany("INSERT INTO image(id, ext, info, added) VALUES(?, '.nii.gz', '{}', 0)", [(i,) for i in ids])
        for name in names:
            rows = zip(ids, [name] * pool, random.random(pool).tolist(), strict=True)
            db.executemany("INSERT INTO score(image_id, name, value) VALUES(?, ?, ?)", rows)
        vectors = random.random((pool, 128), dtype=np.float32)
        db.executemany("INSERT INTO feature VALUES(?, ?)", zip(ids, map(bytes, vectors), strict=True))
        labels = [(image, "final", ".nii.gz", "{}", 1, "0", 1, 1, 1) for image in ids[::5]]
        db.executemany("INSERT INTO label VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", labels)
    began = time.perf_counter()
    store = LocalDatastore(folder, watch=False)
    opened = time.perf_counter() - began
    print(f"opened in {opened:.1f} s", file=sys.stderr)
    found = []
    for name, strategy in strategies().items():
        spent, used = [], []
        for number in range(31):
            holder = f"annotator {number}"
            began, busy = time.perf_counter(), time.process_time()
            pick = strategy({"holder": holder}, store)
            now = int(time.time())
            if pick is None or not store.serve_next(pick.image_id, name, client_id=None, ts=now, holder=holder):
                raise RuntimeError("no image was chosen")
            spent.append((time.perf_counter() - began) * 1e3)
            used.append((time.process_time() - busy) * 1e3)
        found.append(
            {
                "strategy": name,
                "first_ms": spent[0],
                "p50_ms": float(np.median(spent[1:])),
                "max_ms": max(spent[1:]),
                "first_cpu_ms": used[0],
                "cpu_ms": float(np.median(used[1:])),
            }
        )
    store.close()
    return found


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for column in dict.fromkeys(column for row in rows for column in row):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--actors", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--pool", type=int, default=100_000)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--peer-app", type=Path)
    parser.add_argument("--peer-threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayapp-") as name:
        folder = Path(name)
        chosen = choosing(folder / "pool", given.pool) if given.pool else []
        scored = _scored(folder, given) if given.images else []
    if scored:
        show(f"{given.images} images, {given.samples} samples each, load {os.getloadavg()[0]:.1f}", scored)
    if chosen:
        show(f"The next of {given.pool} images", chosen)
    if given.json:
        print(json.dumps({"scored": scored, "chosen": chosen}))


def _scored(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    import ray

    from rayapp.serving.catalogue import Catalogue

    settings = Settings(
        studies=studies(folder / "studies", given.images + max(given.actors)),
        workspace=folder / "workspace",
        models=(MODEL,),
    )
    store = LocalDatastore(settings.studies, watch=False)
    Catalogue(settings, store)  # publishes the shipped models
    store.close()
    ray.init(num_cpus=2, include_dashboard=False, namespace="rayapp", log_to_driver=False, logging_level="error")
    try:
        rows = throughput(settings, given.actors, given.images, given.samples)
    finally:
        ray.shutdown()
    if given.peer_python and given.peer_app:
        rows.append(peer(settings, given))
        for row in rows:
            row["of_peer"] = row["images_per_s"] / rows[-1]["images_per_s"]
    return rows


if __name__ == "__main__":
    main()
