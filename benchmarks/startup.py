"""Time from `rayapp start` to ready, and memory then: python -m benchmarks.startup [--json] [--rounds 3]

Prints medians of: seconds to ready, memory of all processes in GiB (proportional set size), number of processes,
seconds to stop, and the exit status.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import nibabel
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.server import server
from rayapp.imaging.phantom import phantom


def once(folder: Path) -> dict[str, float]:
    """Start a server, measure it and stop it."""
    began = time.perf_counter()
    with (started := server(folder)):
        process = started.process
        ready = time.perf_counter() - began
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        # Proportional set size: pages that processes share count once.
        memory = sum(p.memory_full_info().pss for p in family) / 2**30
        began = time.perf_counter()
    return {
        "ready_s": ready,
        "memory_gib": memory,
        "processes": len(family),
        "stop_s": time.perf_counter() - began,
        "status": process.returncode,
    }


def main() -> None:
    """Run the benchmark and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="startup") as folder:
        (Path(folder) / "studies").mkdir()
        volume, _ = phantom(78, shape=(64, 60, 50))
        nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(Path(folder) / "studies" / "torso.nii.gz")
        rounds = [once(Path(folder)) for _ in range(options.rounds)]
    result = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    if options.json:
        print(json.dumps(result))
        return
    table = Table(*result, title=f"median of {options.rounds}")
    table.add_row(*(f"{value:.2f}" for value in result.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
