"""A click's time through the running server.

    python -m benchmarks.clicks [--json] [--replicas 1,2] [--clicks 20] [--keys] [--peer URL --peer-image ID]

Starts a server of its own on generated torsos and clicks in them over HTTP, always the same image per client. For each
size: the first click (decode and prepare included) and repeated clicks (p50, p99), whose mask is drawn coarsely, as the
network says, or finely around the clicks (`refine`). `coarse_over_bare` and `fine_over_bare` are what a click costs
beyond the network: the wall time at the client minus the bare forward of the same network on the same input, click by
click. `added` is the part of it that the replica's own clock sees, without HTTP, the gateway and the calls between
processes; the budget for that is 25 ms at 256x256x128. The bare forward runs in this process after each click, so that
both find the same caches and clocks: a loop of nothing but forwards is quicker than either would ever be, and is
printed beside them. `cpu` is the processor time that all the server's processes spend on a click, `bare_cpu` that of a
bare forward: both mean something on a busy machine too.

The same figures follow for an interaction that is answered in stages, then the first and the second click in images
that were opened a few seconds before: the first shall cost no more. With more clients, `GET /info/` is asked ten times
a second meanwhile. With `--peer`, the same for a server of MONAI Label that runs here, whose network is another:
compare what it adds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.server import server
from rayapp.client import Client
from rayapp.imaging.phantom import phantom

SIZES = ((128, 128, 64), (256, 256, 128))
CLIENTS = (1, 2, 4, 8)
PAUSE_S = 0.1
"""Between two clicks, or a click and a bare forward: nobody clicks quicker, and each finds the processor as cool."""
IDLE_S = 2.0
"""Seconds for which the idle server is watched."""
LOOKING_S = 3.0
"""Between opening an image and the first click in it."""


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


def over(walls: list[float], alone: list[float]) -> float:
    """Median of wall time minus bare forward, pair by pair, in milliseconds."""
    return p([wall - bare for wall, bare in zip(walls, alone, strict=True)], 0.5)


def place(number: int, size: int) -> tuple[int, int, int]:
    """The voxel (i, j, k) of the click with that number."""
    return size // 2 + number % 17 - 8, size // 2 + number // 17 - 8, 20 + number % 11


def click(client: Client, image: str, number: int, *, size: int, refine: bool = False) -> dict[str, Any]:
    """One click, never the same twice; wall time and the server's stages, in seconds, and the model's version."""
    began = time.perf_counter()
    point = list(place(number, size))
    params = {"liver": [point], "background": [], "label": "liver", "refine": refine}
    reply = client.infer_box("deepedit", image, params=params)
    wall = time.perf_counter() - began
    stages = dict(reply.params["latencies"])
    stages.pop("transform")
    return {**stages, "wall": wall, "version": reply.params["model_version"]}


class Spent:
    """Processor milliseconds of the server for each click of a loop, beyond what it spends while nobody clicks."""

    def __init__(self, running: server) -> None:
        self._running = running
        before = running.cpu_seconds()
        time.sleep(IDLE_S)
        self._idle = (running.cpu_seconds() - before) / IDLE_S
        self._began, self._before = time.perf_counter(), running.cpu_seconds()

    def for_each(self, clicks: int) -> float:
        """Since this was made."""
        spent = self._running.cpu_seconds() - self._before
        return (spent - self._idle * (time.perf_counter() - self._began)) / clicks * 1e3


def repeated(
    running: server,
    client: Client,
    shape: tuple[int, int, int],
    numbers: range,
    forward: Callable[[], float],
    *,
    refine: bool = False,
) -> tuple[list[dict[str, Any]], list[float], float]:
    """Clicks, a bare forward after each, and the server's processor milliseconds for each click."""
    clicks, alone, spent = [], [], Spent(running)
    for number in track(numbers, f"clicks in {shape[0]}_0", console=Console(stderr=True)):
        time.sleep(PAUSE_S)
        clicks.append(click(client, f"{shape[0]}_0", number, size=shape[0], refine=refine))
        time.sleep(PAUSE_S)
        alone.append(forward())
    return clicks, alone, spent.for_each(len(numbers))


def one_client(running: server, clicks: int) -> list[dict[str, Any]]:
    """First and repeated clicks for each size, and between any two of them the bare forward of the same network."""
    rows = []
    with running.client("bench") as client:
        for shape in SIZES:
            image = f"{shape[0]}_0"
            forward = bare_forward(shape)
            first = click(client, image, 0, size=shape[0])
            again, alone, cpu = repeated(running, client, shape, range(1, clicks + 1), forward)
            more = range(clicks + 1, clicks + 1 + clicks // 2)
            finely, beside, fine_cpu = repeated(running, client, shape, more, forward, refine=True)
            walls = [c["wall"] for c in again]
            began = time.process_time()
            in_a_row = [forward() for _ in range(clicks)]
            bare_cpu = (time.process_time() - began) / clicks * 1e3
            rows.append(
                {
                    "size": "x".join(map(str, shape)),
                    "first_ms": first["wall"] * 1e3,
                    "p50_ms": p(walls, 0.5),
                    "p99_ms": p(walls, 0.99),
                    "server_p50_ms": p([c["total"] for c in again], 0.5),
                    "network_p50_ms": p([c["infer"] for c in again], 0.5),
                    "beside_network_p50_ms": p([c["total"] - c["infer"] for c in again], 0.5),
                    "bare_p50_ms": p(alone, 0.5),
                    "added_p50_ms": p([c["total"] - bare for c, bare in zip(again, alone, strict=True)], 0.5),
                    "coarse_over_bare_p50_ms": over(walls, alone),
                    "fine_p50_ms": p([c["wall"] for c in finely], 0.5),
                    "fine_over_bare_p50_ms": over([c["wall"] for c in finely], beside),
                    "bare_in_a_row_p50_ms": p(in_a_row, 0.5),
                    "cpu_ms": cpu,
                    "fine_cpu_ms": fine_cpu,
                    "bare_cpu_ms": bare_cpu,
                }
            )
    return rows


def opened_before(running: server) -> list[dict[str, Any]]:
    """Medians of the first and of the second click in images that the server knew of before."""
    rows = []
    with running.client("bench") as client:
        for shape in SIZES:
            first, second = [], []
            for number in range(1, max(CLIENTS)):
                image = f"{shape[0]}_{number}"
                client.open_interaction("deepedit", image)
                time.sleep(LOOKING_S)
                first.append(click(client, image, 0, size=shape[0])["wall"])
                second.append(click(client, image, 1, size=shape[0])["wall"])
            size = "x".join(map(str, shape))
            rows.append({"size": size, "images": len(first), "first_ms": p(first, 0.5), "second_ms": p(second, 0.5)})
    return rows


def streamed(running: server, clicks: int) -> list[dict[str, Any]]:
    """Milliseconds of clicks of an interaction until the coarse mask is here, and until the fine one is."""
    rows = []
    with running.client("bench") as client:
        for shape in SIZES:
            interaction = client.open_interaction("deepedit", f"{shape[0]}_0")
            coarse, fine, alone, stages, forward = [], [], [], 0, bare_forward(shape)
            for number in range(clicks + 1):
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                masks = interaction.stream({"liver": [place(number, shape[0])]})
                next(masks)
                coarse.append(time.perf_counter() - began)
                stages = 1 + sum(1 for _ in masks)
                fine.append(time.perf_counter() - began)
                time.sleep(PAUSE_S)
                alone.append(forward())
            size = "x".join(map(str, shape))
            rows.append(
                {
                    "size": size,
                    "stages": stages,
                    "coarse_p50_ms": p(coarse[1:], 0.5),
                    "coarse_p99_ms": p(coarse[1:], 0.99),
                    "fine_p50_ms": p(fine[1:], 0.5),
                    "fine_p99_ms": p(fine[1:], 0.99),
                    "coarse_over_bare_p50_ms": over(coarse[1:], alone[1:]),
                    "fine_over_bare_p50_ms": over(fine[1:], alone[1:]),
                }
            )
    return rows


def many_clients(running: server, count: int, clicks: int) -> dict[str, Any]:
    """`count` clients, each on its own 128x128x64 image, and somebody who asks for /info/."""
    walls: list[float] = []
    info: list[float] = []
    stop = threading.Event()

    def annotate(number: int) -> None:
        with running.client(f"bench-{number}") as client:
            click(client, f"128_{number}", 0, size=128)
            for n in range(1, clicks + 1):
                walls.append(click(client, f"128_{number}", n, size=128)["wall"])

    def ask() -> None:
        with running.client() as client:
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


def bare_forward(shape: tuple[int, int, int]) -> Callable[[], float]:
    """Runs the shipped network alone on an image of that size, prepared and warm, and gives the seconds it took."""
    import torch

    from rayapp.apps.radiology.main import SHIPPED, shipped_card
    from rayapp.inference.methods.deepedit import DeepEditTask
    from rayapp.inference.network.network import Network
    from rayapp.models.store import ModelVersion

    card = shipped_card("deepedit")
    weights = SHIPPED / "deepedit.safetensors"
    task = DeepEditTask.from_version(ModelVersion(name="deepedit", version="v1", weights=weights, card=card))
    channels = (card["network"]["in_channels"], card["network"]["out_channels"])
    network = Network(name="deepedit", config=card["network"], weights=weights, channels=channels)
    volume, _ = phantom(77, shape=shape)
    guided = torch.from_numpy(task.prepare(volume).guided.show([()] * len(card["labels"]) + [()]))[None]

    def forward() -> float:
        began = time.perf_counter()
        network(guided)
        return time.perf_counter() - began

    for _ in range(3):
        forward()
    return forward


def peer_clicks(url: str, image: str, clicks: int) -> dict[str, float]:
    """Repeated DeepEdit clicks in a server of MONAI Label, and how long `GET /info/` waits behind one."""
    totals, networks, walls, info = [], [], [], []
    with Client(url, client_id="bench") as client:
        for n in range(clicks + 1):
            params = {"spleen": [[60 + n % 9, 60, 30]], "background": [], "label": "spleen"}
            asking = threading.Thread(target=lambda: info.append(_asked(url)))
            began = time.perf_counter()
            asking.start()
            stages = client.infer("deepedit", image, params=params).params["latencies"]
            walls.append(time.perf_counter() - began)
            asking.join()
            totals.append(stages["total"])
            networks.append(stages["infer"])
    return {
        "p50_ms": p(walls[1:], 0.5),
        "server_p50_ms": p(totals[1:], 0.5),
        "network_p50_ms": p(networks[1:], 0.5),
        "beside_network_p50_ms": p([t - n for t, n in zip(totals[1:], networks[1:], strict=True)], 0.5),
        "info_max_ms": max(info) * 1e3,
    }


def _asked(url: str) -> float:
    time.sleep(0.05)
    began = time.perf_counter()
    with Client(url) as client:
        client.info()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--keys", action="store_true", help="through HAProxy and gRPC, as on servers with keys")
    parser.add_argument("--peer", metavar="URL", help="a running MONAI Label")
    parser.add_argument("--peer-image", metavar="ID", default="ct_a")
    options = parser.parse_args()
    result: dict[str, Any] = {"single": [], "opened": [], "streamed": [], "many": []}
    if options.peer:
        result["peer"] = [peer_clicks(options.peer, options.peer_image, min(5, options.clicks))]
    for replicas in options.replicas.split(","):
        with tempfile.TemporaryDirectory(prefix="click") as folder:
            (Path(folder) / "studies").mkdir()
            studies(Path(folder) / "studies")
            running = server(Path(folder), "--replicas", f"{replicas}:{replicas}", keys=options.keys)
            with running:
                if not result["single"]:
                    result["single"] = one_client(running, options.clicks)
                    result["opened"] = opened_before(running)
                    result["streamed"] = streamed(running, options.clicks)
                for count in CLIENTS:
                    result["many"].append(
                        {"replicas": int(replicas), **many_clients(running, count, options.clicks // 2)}
                    )
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, Any]) -> None:
    """The tables, as columns: they have more figures than sizes."""
    console = Console(width=140)
    titles = {
        "peer": "MONAI Label, one client",
        "single": "one client",
        "opened": "opened before",
        "streamed": "interaction, answered in stages",
        "many": "clients at once, 128x128x64",
    }
    for title, rows in ((title, result[key]) for key, title in titles.items() if key in result):
        table = Table(title=title, show_header=False)
        for name in rows[0]:
            table.add_row(
                name, *(f"{row[name]:.1f}" if isinstance(row[name], float) else str(row[name]) for row in rows)
            )
        console.print(table)


if __name__ == "__main__":
    main()
