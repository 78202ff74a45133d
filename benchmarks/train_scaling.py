"""Scaling of training over workers: python -m benchmarks.train_scaling [--json] [--model NAME] [--iterations N]

Trains on the hippocampi in `../shared/data/hippocampus` through Ray Train with gloo, as the server does on a machine
without GPUs: with one worker of one thread, one worker of two threads, and two workers of one thread. Prints iterations
and images per second and, since the machine may be shared, processor seconds per image and worker; ratios are relative
to the first row. Validation and the first iterations are not timed.

With `--peer-python` and `--peer-app` (the Python interpreter that MONAI Label is installed for, and its radiology app)
a few of the same images are also trained on by MONAI Label's trainer of that name with its own defaults; the duration
of an epoch of all images is extrapolated from the time per image.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console
from rich.table import Table

from benchmarks.peer import ask
from benchmarks.train_hippocampus import LABELS, TASKS, hippocampi
from rayapp.training.train_task import Progress, TrainRequest

CONFIGURATIONS = ((1, 1), (1, 2), (2, 1))
"""Number of workers, and of threads of each."""
WARM = 5
"""Number of iterations that are not timed."""


class Clock:
    """A host that stops the run after a number of iterations, and records when each ends."""

    device = torch.device("cpu")

    def __init__(self, iterations: int) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._iterations = iterations
        self.wall: list[float] = []
        self.busy: list[float] = []

    def resume(self) -> None:
        """No checkpoint: the run starts from the beginning."""

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:  # noqa: ARG002
        """Record the time of an iteration."""
        self.wall.append(time.monotonic())
        self.busy.append(time.process_time())

    def stopped(self) -> bool:
        """True after the number of iterations."""
        return len(self.wall) >= self._iterations


def work(config: dict[str, Any]) -> dict[str, float]:
    """Training loop of one worker."""
    torch.set_num_threads(config["threads"])
    clock = Clock(config["iterations"] + WARM)
    params = {"max_epochs": clock._iterations, "checkpoint_every": 10**6}
    request = TrainRequest(model=config["model"], pairs=hippocampi(), folder=Path(config["folder"]), params=params)
    TASKS[config["model"]].train(request, clock)
    count = len(clock.wall) - WARM
    wall, busy = (times[-1] - times[WARM - 1] for times in (clock.wall, clock.busy))
    return {"iterations_per_s": count / wall, "cpu_s_per_image": busy / count}


def ours(model: str, iterations: int) -> list[dict[str, Any]]:
    """A row for each configuration of workers and threads."""
    rows = []
    for workers, threads in CONFIGURATIONS:
        with tempfile.TemporaryDirectory(prefix="scaling") as folder:
            config = {"model": model, "iterations": iterations, "threads": threads, "folder": f"{folder}/run"}
            trainer = TorchTrainer(
                work,
                train_loop_config=config,
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=folder),
            )
            rows.append({"workers": workers, "threads": threads, **trainer.fit().return_value})
        rows[-1]["images_per_s"] = rows[-1]["iterations_per_s"] * workers
    return rows


def peer(model: str, python: Path, app: Path, images: int, threads: int) -> dict[str, float]:
    """Wall and processor seconds per image of MONAI Label's trainer."""
    pairs = [{"image": str(pair.image), "label": str(pair.label)} for pair in hippocampi()[:images]]
    with tempfile.TemporaryDirectory(prefix="peer") as folder:
        request = {"model": model, "app": str(app), "pairs": pairs, "labels": LABELS, "folder": folder}
        return ask("peer_training.py", request, python=python, threads=threads)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=list(TASKS), default="segmentation")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--peer-app", type=Path)
    parser.add_argument("--peer-images", type=int, default=8)
    parser.add_argument("--peer-threads", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = ours(options.model, options.iterations)
    ray.shutdown()
    result: dict[str, Any] = {"model": options.model, "ours": rows}
    if options.peer_python and options.peer_app:
        threads = options.peer_threads
        result["peer"] = peer(options.model, options.peer_python, options.peer_app, options.peer_images, threads)
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    rows, images = result["ours"], len(hippocampi())
    columns = (
        "workers",
        "threads each",
        "iterations/s",
        "images/s",
        "ratio",
        "CPU s an image",
        "epoch, s",
        "epoch, CPU s",
    )
    table = Table(*columns, title=f"{result['model']}, an epoch being {images} images")
    for row in rows:
        rate, busy = row["images_per_s"], row["cpu_s_per_image"]
        shown = (row["iterations_per_s"], rate, rate / rows[0]["images_per_s"], busy, images / rate, images * busy)
        table.add_row(str(row["workers"]), str(row["threads"]), *map(_plain, shown))
    if peer := result.get("peer"):
        wall, busy = peer["s_per_image"], peer["cpu_s_per_image"]
        shown = (1 / wall, 1 / wall, 1 / wall / rows[0]["images_per_s"], busy, images * wall, images * busy)
        table.add_row("MONAI Label", str(peer["threads"]), *map(_plain, shown))
    Console(width=110).print(table)


def _plain(value: float) -> str:
    """A number with three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
