"""Studies in a DICOM archive: python -m benchmarks.dicomweb [--json] [--size 256] [--slices 40,300] [--listed 10000]

Time from opening a series to its first mask, with the series in the archive only (cold) and cached here (warm);
retrieval rate compared with plain dicomweb-client; latency that the proxy adds per frame; and time to list many series.
The archive is Orthanc on this machine; for listing, since filling Orthanc with so many series would take hours, it is a
server that answers pages of DICOM JSON immediately.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import requests
from aiohttp import web
from rich.console import Console
from rich.table import Table

from benchmarks.server import server
from rayapp.config import Dicomweb
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.series_cache import SeriesCache
from rayapp.imaging.phantom import phantom
from tests.front import Asked, front
from tests.imaging.series import write_series
from tests.orthanc import Orthanc, orthanc

FRAMES = 100
TURNS = 5
MAX = 1 << 32


def seconds(work: Callable[[], Any]) -> float:
    """Duration of a call in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fill(archive: Orthanc, folder: Path, size: int, slices: list[int]) -> None:
    """Store stacked torsos of each number of slices as series `1.2.3.<slices>` and `1.2.4.<slices>`."""
    for count in slices:
        volume, _ = phantom(1, shape=(size, size, 40))
        array = np.resize(volume.array[0].transpose(2, 0, 1), (count, size, size)).transpose(1, 2, 0)
        for root in ("1.2.3", "1.2.4"):
            files = write_series(folder / f"{root}.{count}", array, volume.affine, series=f"{root}.{count}", study=root)
            for start in range(0, len(files), 50):
                archive.store(files[start : start + 50])


def first_masks(url: str, count: int) -> dict[str, float]:
    """Seconds to the first mask of a series that is in the archive only, and of one that is cached."""
    address = f"{url}/infer/segmentation?image=1.2.3.{count}&output=image"
    requests.post(f"{url}/infer/segmentation?image=1.2.4.40&output=image").raise_for_status()  # the model is warm
    return {
        f"cold_{count}_s": seconds(lambda: requests.post(address).raise_for_status()),
        f"warm_{count}_s": statistics.median(
            seconds(lambda: requests.post(address).raise_for_status()) for _ in range(3)
        ),
    }


def retrieval(archive: Orthanc, folder: Path, count: int) -> dict[str, float]:
    """Median retrieval rates in MB/s, measured alternately, and the ratio of times.

    The plain client keeps nothing; ours writes the files and a decoded volume to disk.
    """
    series = f"1.2.4.{count}"
    size = sum(file.stat().st_size for file in (folder / series).iterdir()) / 1e6
    plain, ours = [], []
    for turn in range(TURNS):
        client = archive.client()
        plain.append(seconds(lambda client=client: client.retrieve_series("1.2.4", series)))  # type: ignore[misc]
        home = folder / f"cache-{count}-{turn}"
        cache = SeriesCache(home, PacsClient(Dicomweb(url=archive.url)), max_bytes=MAX, max_volume=MAX)
        ours.append(seconds(lambda cache=cache: cache.retrieve("1.2.4", series, patience=600)))  # type: ignore[misc]
        cache.close()
        shutil.rmtree(home)
    one, other = statistics.median(plain), statistics.median(ours)
    return {
        f"plain_{count}_mb_s": size / one,
        f"ours_{count}_mb_s": size / other,
        f"retrieval_{count}_ratio": other / one,
    }


def frames(archive: Orthanc, url: str, count: int) -> dict[str, float]:
    """Median latency of a frame in ms, from the archive directly and through the proxy, measured alternately."""
    series = f"1.2.4.{count}"
    instances = sorted(archive.client().search_for_instances("1.2.4", series), key=str)[:FRAMES]
    session, accept = requests.Session(), {"Accept": 'multipart/related; type="application/octet-stream"'}
    times: dict[str, list[float]] = {archive.url: [], url + "/proxy/dicom/wado": []}
    for instance in instances:
        uid = instance["00080018"]["Value"][0]
        for base, taken in times.items():
            frame = f"{base}/studies/1.2.4/series/{series}/instances/{uid}/frames/1"
            taken.append(seconds(lambda frame=frame: session.get(frame, headers=accept).raise_for_status()))  # type: ignore[misc]
    straight, proxied = (1e3 * statistics.median(taken) for taken in times.values())
    return {"frame_ms": straight, "frame_proxied_ms": proxied}


def listing(count: int) -> dict[str, float]:
    """Seconds to list `count` series."""

    def page(asked: Asked) -> web.StreamResponse:
        query = parse_qs(urlsplit(asked.path).query)
        start, limit = int(query["offset"][0]), int(query["limit"][0])
        items = [
            {
                "0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]},
                "0020000D": {"vr": "UI", "Value": [f"1.3.{number}"]},
                "00080060": {"vr": "CS", "Value": ["CT"]},
                "00100020": {"vr": "LO", "Value": [f"P{number}"]},
            }
            for number in range(start, min(start + limit, count))
        ]
        return web.json_response(items, content_type="application/dicom+json")

    with front() as standing:
        standing.answer = page
        pacs = PacsClient(Dicomweb(url=standing.url))
        taken = seconds(lambda: pacs.series({"Modality": "CT"}))
    return {f"list_{count}_s": taken}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", default="40,300")
    parser.add_argument("--listed", type=int, default=10_000)
    options = parser.parse_args()
    slices = [int(count) for count in options.slices.split(",")]
    result: dict[str, float] = listing(options.listed)
    with tempfile.TemporaryDirectory(prefix="dicomweb") as name:
        folder = Path(name)
        with orthanc(folder / "orthanc") as archive:
            fill(archive, folder, options.size, sorted({40, *slices}))
            for count in slices:
                result |= retrieval(archive, folder, count)
            with server(folder, "--studies", archive.url) as url:
                for count in slices:
                    result |= first_masks(url, count)
                result |= frames(archive, url, max(slices))
    result["load"] = os.getloadavg()[1]  # of five minutes
    if options.json:
        print(json.dumps(result))
        return
    table = Table("what", "value", title=f"{options.size} x {options.size} slices")
    for what, value in result.items():
        table.add_row(what, f"{value:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main()
