"""A click's time through the running server: python -m benchmarks.clicks [--json] [--replicas 1,2] [--clicks 20]

Starts a server of its own on generated torsos and clicks in them over HTTP, always the same image per client. For each
size: the first click (decode and prepare included), repeated clicks (p50, p99), the bare forward of the same network
on the same input in a process of its own, and the difference of the server's own time and its network stage, which
the budget bounds to 25 ms at 256x256x128. With more clients, `GET /info/` is asked ten times a second meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rayapp.client import Client
from rayapp.imaging.phantom import phantom

SIZES = ((128, 128, 64), (256, 256, 128))
CLIENTS = (1, 2, 4, 8)


def studies(folder: Path) -> None:
    """One torso of each size for every client."""
    for shape in SIZES:
        volume, _ = phantom(77, shape=shape)
        image = nibabel.Nifti1Image(volume.array[0], volume.affine)
        for number in range(max(CLIENTS)):
            image.to_filename(folder / f"{shape[0]}_{number}.nii.gz")


def p(values: list[float], quantile: float) -> float:
    """A quantile in milliseconds."""
    return float(np.quantile(values, quantile)) * 1e3


def click(client: Client, image: str, number: int, *, size: int) -> dict[str, Any]:
    """One click, never the same twice; wall time and the server's stages, in seconds, and the model's version."""
    point = [size // 2 + number % 17 - 8, size // 2 + number // 17 - 8, 20 + number % 11]
    began = time.perf_counter()
    reply = client.infer_box("deepedit", image, params={"liver": [point], "background": [], "label": "liver"})
    wall = time.perf_counter() - began
    stages = dict(reply.params["latencies"])
    stages.pop("transform")
    return {**stages, "wall": wall, "version": reply.params["model_version"]}


def one_client(url: str, clicks: int) -> list[dict[str, Any]]:
    """First and repeated clicks for each size."""
    rows = []
    with Client(url, client_id="bench") as client:
        for shape in SIZES:
            image = f"{shape[0]}_0"
            first = click(client, image, 0, size=shape[0])
            again = [click(client, image, n, size=shape[0]) for n in track(range(1, clicks + 1), f"clicks in {image}")]
            walls = [c["wall"] for c in again]
            beside = [c["total"] - c["infer"] for c in again]
            rows.append(
                {
                    "size": "x".join(map(str, shape)),
                    "first_ms": first["wall"] * 1e3,
                    "p50_ms": p(walls, 0.5),
                    "p99_ms": p(walls, 0.99),
                    "server_p50_ms": p([c["total"] for c in again], 0.5),
                    "network_p50_ms": p([c["infer"] for c in again], 0.5),
                    "beside_network_p50_ms": p(beside, 0.5),
                }
            )
    return rows


def many_clients(url: str, count: int, clicks: int) -> dict[str, Any]:
    """`count` clients, each on its own 128x128x64 image, and somebody who asks for /info/."""
    walls: list[float] = []
    info: list[float] = []
    stop = threading.Event()

    def annotate(number: int) -> None:
        with Client(url, client_id=f"bench-{number}") as client:
            click(client, f"128_{number}", 0, size=128)
            for n in range(1, clicks + 1):
                walls.append(click(client, f"128_{number}", n, size=128)["wall"])

    def ask() -> None:
        with Client(url) as client:
            while not stop.wait(0.1):
                began = time.perf_counter()
                client.info()
                info.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    annotators = [threading.Thread(target=annotate, args=(n,)) for n in range(count)]
    began = time.perf_counter()
    for thread in annotators:
        thread.start()
    for thread in annotators:
        thread.join()
    took = time.perf_counter() - began
    stop.set()
    asking.join()
    return {
        "clients": count,
        "clicks_per_s": len(walls) / took,
        "p50_ms": p(walls, 0.5),
        "p99_ms": p(walls, 0.99),
        "info_p50_ms": p(info, 0.5),
        "info_p99_ms": p(info, 0.99),
    }


def bare_forward() -> float:
    """Median milliseconds of the shipped network alone on the input of its own shape."""
    import torch

    from rayapp.apps.radiology.main import SHIPPED, shipped_card
    from rayapp.inference.deepedit import DeepEditTask
    from rayapp.inference.task import Prompts
    from rayapp.models.store import ModelVersion

    card = shipped_card("deepedit")
    weights = SHIPPED / "deepedit.safetensors"
    task = DeepEditTask.from_version(ModelVersion(name="deepedit", version="v1", weights=weights, card=card))
    task.load()
    volume, _ = phantom(77, shape=SIZES[1])
    prepared = task.prepare(volume)
    times = []
    with torch.inference_mode():
        for number in range(6):
            prompts = Prompts(clicks={"liver": [(100 + number, 100, 50)]})
            times.append(task.predict(prepared, prompts, {}).seconds["infer"])
    return statistics.median(times[1:]) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--clicks", type=int, default=20)
    options = parser.parse_args()
    result: dict[str, Any] = {"bare_forward_256_ms": bare_forward(), "single": [], "many": []}
    for replicas in options.replicas.split(","):
        with tempfile.TemporaryDirectory(prefix="click") as folder:
            (Path(folder) / "studies").mkdir()
            studies(Path(folder) / "studies")
            with server(Path(folder), replicas) as url:
                if not result["single"]:
                    result["single"] = one_client(url, options.clicks)
                for count in CLIENTS:
                    result["many"].append({"replicas": int(replicas), **many_clients(url, count, options.clicks // 2)})
    print(json.dumps(result)) if options.json else show(result)


class server:  # noqa: N801 - reads as a verb
    """`rayapp start` as a process, for a with statement; gives its address."""

    def __init__(self, folder: Path, replicas: str) -> None:
        command = [str(Path(sys.executable).with_name("rayapp")), "start", "--studies", str(folder / "studies")]
        command += ["--workspace", str(folder / "workspace"), "--port", "0", "--replicas", f"{replicas}:{replicas}"]
        environment = {**os.environ, "RAYAPP_DASHBOARD": "false"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().removeprefix("ready ").strip()

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def show(result: dict[str, Any]) -> None:
    """The tables."""
    console = Console()
    console.print(f"bare deepedit forward, 256x256x128: {result['bare_forward_256_ms']:.0f} ms")
    for title, rows in (("one client", result["single"]), ("clients at once, 128x128x64", result["many"])):
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(table)


if __name__ == "__main__":
    main()
