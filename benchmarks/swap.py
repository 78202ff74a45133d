"""Click latency while a model is swapped: python -m benchmarks.swap [--json] [--clients 4] [--swaps 3]

Starts a server on generated torsos. Each client clicks continuously in an image of its own while new weights are
published several times. Prints click latency before the first publication and during swaps (from the publication until
the new version answers every client), the longest swap, and the number of failed clicks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.clicks import click, p, studies
from benchmarks.server import server
from rayapp.client import Client
from rayapp.errors import RayappError

MODEL = "deepedit"
SETTLE_S = 10.0


@dataclass(frozen=True)
class Answer:
    """One click.

    Attributes:
        sent: Time when it was sent, in seconds of `time.perf_counter`.
        seconds: Latency.
        version: The model version that answered; None if the click failed.
    """

    sent: float
    seconds: float
    version: str | None


class Annotator(threading.Thread):
    """A thread that clicks until it is stopped."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._url, self._number, self._stop_it = url, number, stop
        self.answers: list[Answer] = []

    def run(self) -> None:
        with Client(self._url, client_id=f"bench-{self._number}") as client:
            count = 0
            while not self._stop_it.is_set():
                began, version = time.perf_counter(), None
                try:
                    reply = click(client, f"128_{self._number}", count, size=128)
                    version = str(reply["version"])
                except RayappError:
                    pass
                self.answers.append(Answer(began, time.perf_counter() - began, version))
                count += 1


def measure(url: str, clients: int, swaps: int, folder: Path) -> dict[str, Any]:
    """Click with several clients and publish weights meanwhile; returns the results."""
    stop = threading.Event()
    annotators = [Annotator(url, number, stop) for number in range(clients)]
    for annotator in annotators:
        annotator.start()
    time.sleep(2 * SETTLE_S)
    began = time.perf_counter()
    time.sleep(2 * SETTLE_S)
    spans: list[tuple[float, float]] = []
    with Client(url) as client:
        weights = client.download_model(MODEL, folder)
        first = time.perf_counter()
        for _ in range(swaps):
            published = time.perf_counter()
            client.upload_model(MODEL, weights)
            new = client.info()["models"][MODEL]["version"]
            while not all(annotator.answers[-1].version == new for annotator in annotators):
                time.sleep(0.01)
            spans.append((published, time.perf_counter()))
            time.sleep(SETTLE_S)
    stop.set()
    for annotator in annotators:
        annotator.join()
    answers = [answer for annotator in annotators for answer in annotator.answers]
    before = [a.seconds for a in answers if began <= a.sent < first]
    during = [a.seconds for a in answers if any(start <= a.sent + a.seconds and a.sent < end for start, end in spans)]
    return {
        "clients": clients,
        "clicks": len(answers),
        "failed": sum(answer.version is None for answer in answers),
        "swap_s": max(end - start for start, end in spans),
        **{f"before_{name}_ms": value for name, value in tails(before).items()},
        **{f"during_{name}_ms": value for name, value in tails(during).items()},
    }


def tails(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds."""
    return {"p50": p(seconds, 0.5), "p99": p(seconds, 0.99), "max": max(seconds) * 1e3}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--swaps", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swap") as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        studies(folder / "studies")
        with server(folder) as url:
            result = measure(url, options.clients, options.swaps, folder)
    if options.json:
        print(json.dumps(result))
        return
    table = Table("what", "figure")
    for name, value in result.items():
        table.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
