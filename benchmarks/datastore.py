"""Datastore performance by number of images: durable saves, start-up, listing and choosing the next image.

    python -m benchmarks.datastore [--sizes 100,10000,100000] [--seconds 3] [--json]

A save is counted once it is durable (file, revision and index synced to disk) and visible. Image and label files are
tiny, so that the store is measured and not the copying of voxels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.server import server
from rayapp.client import Client
from rayapp.datastore.interfaces import Author
from rayapp.datastore.local import LocalDatastore

AUTHOR = Author(user="bench")
CLIENTS = 8
LABEL = bytes(np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8))
"""About the size of a compressed label map of a few organs."""

Figures = dict[str, Any]


def make_folder(root: Path, images: int) -> Path:
    """Create a studies folder of `images` images, which are hard links to one file."""
    root.mkdir()
    seed = root / ".seed"
    seed.write_bytes(b"voxels")
    for i in range(images):
        (root / f"image_{i:06}.nii.gz").hardlink_to(seed)
        if i % 50_000 == 49_999:  # a file has at most 65,000 names
            seed.unlink()
            seed.write_bytes(b"voxels")
    return root


def milliseconds(call: Callable[[], object], times: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Durations of `times` calls in ms."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1e3)
    return np.array(taken)


def save(store: Any, image_id: str) -> None:
    """Save `LABEL` durably."""
    staged = store.stage(".nii.gz")
    staged.write_bytes(LABEL + np.random.bytes(8))
    store.save_label(image_id, "final", staged, ".nii.gz", info={"model": "m"}, author=AUTHOR)


def saves_a_second(store: Any, ids: list[str], seconds: float) -> float:
    """Saves per second by `CLIENTS` threads, each on its own images."""
    counts = [0] * CLIENTS

    def client(number: int) -> None:
        save(store, ids[(number + counts[number] * CLIENTS) % len(ids)])
        counts[number] += 1

    return together(client, seconds)


def together(call: Callable[[int], object], seconds: float) -> float:
    """Calls per second by `CLIENTS` threads; `call` is passed the thread's number."""
    counts = [0] * CLIENTS
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        while time.perf_counter() < end:
            call(number)
            counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure(root: Path, images: int, seconds: float) -> Figures:
    """Measure the store in this process, on a folder of `images` images."""
    studies = make_folder(root / f"studies_{images}", images)
    started = time.perf_counter()
    store = LocalDatastore(studies, settle=0)
    first_scan = time.perf_counter() - started
    ids = store.image_ids()
    assert len(ids) == images
    single = milliseconds(lambda: save(store, ids[len(ids) // 2]), 100)
    spread = ids[:: max(1, images // 50)]
    drawn = milliseconds(lambda: next_random(store), 50)
    figures = {
        "images": images,
        "first_scan_s": first_scan,
        "save_p50_ms": float(np.percentile(single, 50)),
        "save_p99_ms": float(np.percentile(single, 99)),
        "saves_per_s": saves_a_second(store, spread, seconds),
        "status_ms": float(np.median(milliseconds(store.status, 50))),
        "list_ms": float(np.median(milliseconds(store.image_ids, 5))),
        "page_ms": float(np.median(milliseconds(lambda: store.image_ids(after=ids[-60], limit=50), 50))),
        "next_first_ms": float(np.median(milliseconds(lambda: store.unlabeled(order="first"), 50))),
        "next_random_p50_ms": float(np.percentile(drawn, 50)),
        "next_random_p99_ms": float(np.percentile(drawn, 99)),
        "document_s": float(milliseconds(store.document, 1)[0] / 1e3),
    }
    started = time.perf_counter()
    store.close()
    figures["close_s"] = time.perf_counter() - started
    started = time.perf_counter()
    again = LocalDatastore(studies, settle=0)
    figures["restart_s"] = time.perf_counter() - started
    again.close()
    shutil.rmtree(studies)
    return figures


def next_random(store: LocalDatastore) -> None:
    """Choose and lease the next image, as the strategy `random` does."""
    (image_id,) = store.unlabeled(order="age")
    store.serve_next(image_id, "random", client_id=None, ts=int(time.time()))


def measure_actor(root: Path, seconds: float) -> Figures:
    """Measure saves through the Ray actor."""
    import ray

    from actors.datastore import remote_datastore, start_datastore
    from rayapp.config import Settings

    studies = make_folder(root / "studies_actor", 100)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        handle = start_datastore(Settings(studies=studies, workspace=root / "workspace"))
        store = remote_datastore(handle)
        ids = store.image_ids()
        single = milliseconds(lambda: save(store, ids[0]), 100)
        figures = {
            "save_p50_ms": float(np.percentile(single, 50)),
            "save_p99_ms": float(np.percentile(single, 99)),
            "saves_per_s": saves_a_second(store, ids, seconds),
        }
        store.close()
        ray.kill(handle)
    finally:
        ray.shutdown()
    return figures


def measure_http(root: Path, seconds: float) -> Figures:
    """Saves of real label maps over HTTP by clients of the running server, which reads and checks each."""
    folder = root / "http"
    (folder / "studies").mkdir(parents=True)
    rng = np.random.default_rng(0)
    volume = nibabel.Nifti1Image(rng.integers(0, 500, (64, 64, 32), dtype=np.int16), np.diag([1.5, 1.5, 3, 1]))
    label = nibabel.Nifti1Image((volume.get_fdata() > 400).astype(np.uint8), volume.affine)
    label.to_filename(folder / "label.nii.gz")
    for number in range(CLIENTS):
        volume.to_filename(folder / "studies" / f"image_{number}.nii.gz")
    with server(folder) as url:
        clients = [Client(url, client_id=f"bench-{number}") for number in range(CLIENTS)]

        def save_one(number: int) -> None:
            clients[number].save_label(f"image_{number}", folder / "label.nii.gz", params={"model": "m"})

        single = milliseconds(lambda: save_one(0), 50)
        rate = together(save_one, seconds)
        for client in clients:
            client.close()
    return {
        "save_p50_ms": float(np.percentile(single, 50)),
        "save_p99_ms": float(np.percentile(single, 99)),
        "saves_per_s": rate,
    }


def show(sizes: list[Figures], actor: Figures, http: Figures) -> None:
    """Print a table."""
    names = list(sizes[0])
    table = Table(title=f"Datastore, {CLIENTS} savers, labels of {len(LABEL) // 1000} kB")
    table.add_column("figure")
    for figures in sizes:
        table.add_column(f"{figures['images']:,} images", justify="right")
    table.add_column("actor, 100 images", justify="right")
    table.add_column("HTTP, 8 images", justify="right")
    for name in names[1:]:
        row = [f"{figures[name]:.2f}" for figures in sizes]
        table.add_row(name, *row, *(f"{figures[name]:.2f}" if name in figures else "" for figures in (actor, http)))
    Console().print(table)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default="100,10000,100000", help="numbers of images, with commas between")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of the throughput measurements")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    options = parser.parse_args()
    sizes = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as progress:
        numbers = [int(size) for size in options.sizes.split(",")]
        for number in progress.track(numbers, description="by number of images"):
            sizes.append(measure(Path(folder), number, options.seconds))
        progress.add_task("through the actor", total=None)
        actor = measure_actor(Path(folder), options.seconds)
        progress.add_task("over HTTP", total=None)
        http = measure_http(Path(folder), options.seconds)
    if options.json:
        print(json.dumps({"benchmark": "datastore", "clients": CLIENTS, "sizes": sizes, "actor": actor, "http": http}))
    else:
        show(sizes, actor, http)


if __name__ == "__main__":
    main()
