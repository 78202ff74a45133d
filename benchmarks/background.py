"""Click latency beside background work: python -m benchmarks.background [--json] [--clicks 60] [--work training]

Starts a server on generated torsos and clicks in one of them every 0.1 s, first on an idle machine and then while a
model trains (`training`) or unlabelled images are scored (`scoring`) on it; `GET /info/` is requested meanwhile. Prints
p50 and p99 of both and their ratio. Fails if the background work ends before the clicks do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.clicks import PAUSE_S, click, p
from benchmarks.server import server
from rayapp.client import Client, JobKind
from rayapp.imaging.phantom import phantom

SIZE = 128
IMAGES = 8
WORKS: dict[str, tuple[JobKind, str, dict[str, Any]]] = {
    "training": (JobKind.TRAIN, "segmentation", {"max_epochs": 1000, "val_interval": 1000}),
    "scoring": (JobKind.SCORING, "epistemic", {"samples": 100}),
}
START_S = 300.0


def studies(folder: Path) -> dict[str, Path]:
    """Write torsos into a folder; returns image id to label file. The first image is for clicking."""
    labels = {}
    for number in range(IMAGES):
        volume, outlines = phantom(300 + number, shape=(SIZE, SIZE, 64))
        nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(folder / f"torso_{number}.nii.gz")
        labels[f"torso_{number}"] = folder.parent / f"outlines_{number}.nii.gz"
        nibabel.Nifti1Image(outlines.array, outlines.affine).to_filename(labels[f"torso_{number}"])
    return labels


def clicks(url: str, count: int, what: str) -> dict[str, float]:
    """Latencies in ms of clicks in the first image, and of `GET /info/` meanwhile; `what` titles the progress bar."""
    walls, info, stop = [], [], threading.Event()

    def ask() -> None:
        with Client(url) as client:
            while not stop.wait(PAUSE_S):
                began = time.perf_counter()
                client.info()
                info.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask)
    with Client(url, client_id="bench") as client:
        for number in range(3):
            click(client, "torso_0", number, size=SIZE)
        asking.start()
        for number in track(range(count), f"clicks {what}", console=Console(stderr=True)):
            time.sleep(PAUSE_S)
            walls.append(click(client, "torso_0", number, size=SIZE)["wall"])
    stop.set()
    asking.join()
    return {
        "p50_ms": p(walls, 0.5),
        "p99_ms": p(walls, 0.99),
        "max_ms": max(walls) * 1e3,
        "info_p50_ms": p(info, 0.5),
        "info_p99_ms": p(info, 0.99),
    }


@contextmanager
def working(url: str, work: str) -> Iterator[None]:
    """Context in which background work is in progress."""
    kind, name, request = WORKS[work]
    with Client(url) as client:
        job = client.start_job(kind, name, request)["id"]
        waited = time.monotonic()
        while not (seen := client.job(job)).get("progress"):
            if time.monotonic() - waited > START_S or "end_ts" in seen:
                raise SystemExit(f"{work} did not start: {seen}")
            time.sleep(0.5)
        yield
        if "end_ts" in client.job(job):
            raise SystemExit(f"{work} ended before the clicks did")
        client.cancel_job(job)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clicks", type=int, default=60)
    parser.add_argument("--work", choices=WORKS, default="training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="background") as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        labels = studies(folder / "studies")
        with server(folder) as url:
            if options.work == "training":
                with Client(url) as client:
                    for image, file in labels.items():
                        client.save_label(image, file)
            rows = {"alone": clicks(url, options.clicks, "alone")}
            with working(url, options.work):
                rows[options.work] = clicks(url, options.clicks, f"beside {options.work}")
    ratio = {key: value / rows["alone"][key] for key, value in rows[options.work].items()}
    if options.json:
        print(json.dumps({**rows, "ratio": ratio}))
        return
    table = Table("", *ratio)
    for title, row in rows.items():
        table.add_row(title, *(f"{value:.1f}" for value in row.values()))
    table.add_row("ratio", *(f"{value:.2f}" for value in ratio.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
