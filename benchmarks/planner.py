"""The planner's predictions compared with measurements: python -m benchmarks.planner [--json] [--rounds 3]

Forward passes and training steps of several networks, each in a process of its own. Memory is the bytes allocated on
the GPU if there is one. Otherwise it is resident memory, measured twice: as glibc allocates it, and with every block of
1 MiB or more mapped separately (`exact`), which leaves out fragmentation between tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rayapp.planner.footprint import MIB, Footprint, Workload

SMALL = 32
"""Voxels along each axis of a warm-up run, in which the libraries allocate what they keep."""
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""glibc's setting against fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Peak memory of the work in bytes, and the duration of its fastest run in seconds."""

    memory: int
    seconds: float


def measure(work: Workload, *, rounds: int = 2) -> Measured:
    """Run the work in this process, on the GPU if there is one, and measure it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    Workload(**{**asdict(work), "roi": [SMALL] * len(work.roi), "batch": 1}).prepare(device)()
    peak = _allocated() if device == "cuda" else _resident()
    once, times = work.prepare(device), []
    for _ in range(rounds):
        began = time.perf_counter()
        once()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return Measured(memory=peak(), seconds=min(times))


def measure_apart(works: Sequence[Workload], *, exact: bool, rounds: int = 2) -> list[Measured]:
    """Measure works one after the other in one subprocess; `exact` avoids fragmentation."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.planner", "--rounds", str(rounds), "--works", "-"],
        input=json.dumps([asdict(work) for work in works]),
        env={**os.environ, **(EXACT if exact else {})},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Measured(**found) for found in json.loads(done.stdout)]


def _resident() -> Callable[[], int]:
    """Start measuring resident memory (Linux); returns a function for its peak growth in bytes."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    return lambda: _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _allocated() -> Callable[[], int]:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def unet(channels: Sequence[int], *, inputs: int = 1, outputs: int = 3, strides: Sequence[Any] = ()) -> dict[str, Any]:
    """Configuration of a residual UNet."""
    return {
        "name": "UNet",
        "spatial_dims": 3,
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": list(channels),
        "strides": list(strides) or [2] * (len(channels) - 1),
        "num_res_units": 1,
    }


NETWORKS = (
    (unet([16, 32, 64, 128]), (96, 96, 96), 2),
    (unet([16, 32, 64, 128], inputs=7, outputs=6), (88, 80, 72), 1),
    (unet([16, 32, 64, 128]), (128, 128, 128), 1),
    (unet([32, 64, 128, 256]), (96, 96, 96), 1),
    (unet([16, 32, 64, 128], strides=[[2, 2, 1], [2, 2, 2], [2, 2, 2]]), (160, 160, 40), 1),
    (unet([16, 32, 64, 128, 256]), (160, 160, 160), 1),
    (unet([16, 32, 64, 128], outputs=6), (40, 56, 48), 4),
)


def main() -> None:
    """Run the benchmark and print a row for each piece of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", help=argparse.SUPPRESS)  # for the subprocess of `measure_apart`
    options = parser.parse_args()
    if options.works:
        works = [Workload(**work) for work in json.load(sys.stdin)]
        print(json.dumps([asdict(measure(work, rounds=options.rounds)) for work in works]))
        return
    table = Table("network", "ROI", "batch", "work", "precision", "MiB", "measured", "resident", "measured", "seconds")
    rows = []
    works = [
        Workload(network=network, roi=roi, batch=batch, precision=precision, training=training)
        for network, roi, batch in NETWORKS
        for training in (False, True)
        for precision in ("float32", "bfloat16")
    ]
    for work in track(works, "measuring", console=Console(stderr=True)):
        predicted = Footprint.of(work, threads=torch.get_num_threads())
        (exact,) = measure_apart([work], exact=True, rounds=1)
        (usual,) = measure_apart([work], exact=False, rounds=options.rounds)
        rows.append(
            {
                **asdict(work),
                **asdict(predicted),
                "exact": exact.memory,
                "usual": usual.memory,
                "seconds": usual.seconds,
            }
        )
        table.add_row(
            f"{work.network['name']} {work.network['channels'][0]}..{work.network['channels'][-1]}",
            "x".join(map(str, work.roi)),
            str(work.batch),
            "step" if work.training else "forward",
            work.precision,
            *(f"{size / MIB:.0f}" for size in (predicted.memory, exact.memory, predicted.resident, usual.memory)),
            f"{usual.seconds:.2f}",
        )
    Console(width=140).print(table)
    if options.json:
        print(json.dumps({"planner": rows}))


if __name__ == "__main__":
    main()
