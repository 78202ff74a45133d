"""Latency of the next image over HTTP: python -m benchmarks.strategies [--images 100000] [--asks 40] [--json]

Creates a folder of `--images` images, all with the scores and features that strategies use and one in a hundred
labelled, starts a server on it, and requests the next image repeatedly, as one annotator and as eight concurrently.
Prints, by strategy, the first answer after the start, p50 and p99 in ms; and those of `GET /info/`, as the cost of any
request.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.datastore import make_folder, milliseconds, save
from benchmarks.server import server
from rayapp.active_learning.strategies import CLASS_ENTROPY, EPISTEMIC, FOREGROUND, TTA, strategies
from rayapp.client import Client
from rayapp.datastore.interfaces import ImageScore
from rayapp.datastore.local import LocalDatastore

CLIENTS = 8
FEATURES = 128
CHUNK = 5000
NAMES = (TTA, EPISTEMIC, FOREGROUND, *(f"{CLASS_ENTROPY}{name}" for name in ("liver", "spleen", "left kidney")))


def fill(studies: Path) -> None:
    """Save scores and features of all images, and label one in a hundred."""
    store = LocalDatastore(studies, settle=0)
    ids, rng = store.image_ids(), np.random.default_rng(0)
    for at in track(range(0, len(ids), CHUNK), "scores", console=Console(stderr=True)):
        store.save_scores(
            [
                ImageScore(
                    image_id=image_id,
                    run="bench",
                    ts=0.0,
                    values=dict(zip(NAMES, rng.random(len(NAMES)), strict=True)),
                    feature=rng.random(FEATURES).tolist(),
                )
                for image_id in ids[at : at + CHUNK]
            ]
        )
    for image_id in track(ids[::100], "labels", console=Console(stderr=True)):
        save(store, image_id)
    store.close()


def ask(url: str, strategy: str, times: int, client_id: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Latencies of `times` requests in ms."""

    def once() -> None:
        if strategy == "/info/":
            client.info()
        else:
            assert client.next_sample(strategy) is not None

    with Client(url, client_id=client_id) as client:
        return milliseconds(once, times)


def measure(url: str, asks: int) -> list[dict[str, Any]]:
    """A row for each strategy."""
    rows = []
    for name in ("/info/", *strategies()):
        alone = ask(url, name, asks + 1, "bench-0")
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(ask, url, name, asks // 2, f"bench-{number}") for number in range(CLIENTS)]
            together = np.concatenate([one.result() for one in asked])
        rows.append(
            {
                "strategy": name,
                "first_ms": alone[0],
                "p50_ms": np.quantile(alone[1:], 0.5),
                "p99_ms": np.quantile(alone[1:], 0.99),
                f"p50_of_{CLIENTS}_ms": np.quantile(together, 0.5),
                f"p99_of_{CLIENTS}_ms": np.quantile(together, 0.99),
            }
        )
    return rows


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--asks", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strategies") as name:
        fill(make_folder(Path(name) / "studies", options.images))
        began = time.perf_counter()
        with server(Path(name)) as url:
            ready = time.perf_counter() - began
            rows = measure(url, options.asks)
    if options.json:
        print(json.dumps({"images": options.images, "ready_s": ready, "rows": rows}))
        return
    table = Table(*rows[0], title=f"{options.images:,} images, ready in {ready:.1f} s")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.1f}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
