"""Segmentation from strokes: python -m benchmarks.scribbles [--json] [--slices 1,3,5] [--server NAME=URL …]

Simulates strokes on real volumes from the reference segmentation, with fixed seeds: on each of 1, 3 or 5 slices, one
line along the structure and one ring around it, a voxel wide, at a distance of an eighth to a quarter of the
structure's width in the slice. There is no box. For each method: Dice with the reference; the share of marked voxels
that keep their mark; and in ms, median and maximum of the first answer on an image (which includes its preparation) and
of the next one, of which also the processor time, which other work on the machine hardly affects.

rayapp's constants were tuned on the first five CHAOS volumes and the first twenty hippocampi, so only other volumes are
reported, unless `--tuned` is given. `--server` measures a running server over HTTP as 3D Slicer would use it, with the
same strokes; MONAI Label implements the same protocol. Volumes are in ../shared/data (CHAOS may not be redistributed).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import requests
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from benchmarks.real_data import DATA
from rayapp.apps.radiology.main import ONLINE, scribbles
from rayapp.geometry import spacing
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.training.click_simulation import centreline

PLACES = {1: (0.5,), 3: (0.2, 0.5, 0.8), 5: (0.1, 0.3, 0.5, 0.7, 0.9)}
"""Number of slices to their positions, relative to the structure's extent along the last axis."""
STRUCTURES = {
    "spleen": ("chaos_t2", (4,)),
    "liver": ("chaos_t2", (1,)),
    "kidney": ("chaos_t2", (2,)),
    "hippocampus": ("hippocampus", (1, 2)),
}
TUNED = {"chaos_t2": 5, "hippocampus": 20}
COUNT = {"chaos_t2": 5, "hippocampus": 20}
INFO = [{"name": "background_scribbles", "id": BACKGROUND}, {"name": "foreground_scribbles", "id": FOREGROUND}]

Mask = npt.NDArray[np.bool_]
Ask = Callable[[npt.NDArray[np.uint8]], Mask]
"""Maps strokes on one image to a mask."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A volume with its reference mask and a random seed."""

    path: Path
    volume: Volume
    truth: Mask
    seed: int


def cases(structure: str, *, tuned: bool) -> Iterator[Case]:
    """Volumes in order of their numbers; the first ones are those that constants were tuned on."""
    folder, values = STRUCTURES[structure]
    paths = sorted((DATA / folder / "imagesTr").glob("*.nii.gz"), key=_number)
    first = 0 if tuned else TUNED[folder]
    for path in paths[first : first + COUNT[folder]]:
        image = nibabel.load(path)
        labels = np.asarray(nibabel.load(DATA / folder / "labelsTr" / path.name).dataobj)
        volume = Volume(array=np.asarray(image.dataobj)[None], affine=image.affine)
        yield Case(path=path, volume=volume, truth=np.isin(labels, values), seed=_number(path))


def _number(path: Path) -> int:
    return int(path.name.removesuffix(".nii.gz").rpartition("_")[2])


def strokes(truth: Mask, count: int, spacing_mm: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.uint8]:
    """Simulated strokes as a scribble map: one line and one ring on each of `count` slices."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(truth.shape, np.uint8)
    within = np.flatnonzero(truth.any((0, 1)))
    for place in PLACES[count]:
        k = within[round(place * (len(within) - 1))]
        draw(drawn[:, :, k], truth[:, :, k], spacing_mm[:2], rng)
    return drawn


def draw(drawn: npt.NDArray[np.uint8], mask: Mask, step: npt.NDArray[np.float64], rng: np.random.Generator) -> None:
    """Draw a ring around a slice's mask, and a line along the middle of its largest component.

    Args:
        drawn: The slice's scribble map; modified.
        mask: The structure's mask in the slice.
        step: In-plane spacing in mm.
        rng: Random generator for the ring's distance.
    """
    away = max(2 * step.max(), rng.uniform(0.12, 0.24) * np.sqrt(mask.sum() * step.prod()))
    outside = ndimage.distance_transform_edt(~mask, sampling=step)
    drawn[np.abs(outside - away) < 0.6 * step.max()] = BACKGROUND
    drawn[tuple(centreline(mask, step).T)] = FOREGROUND


def in_process(method: str) -> Callable[[Case], Ask]:
    """A method of the radiology app, run in this process."""
    task = scribbles({})[method]
    task.load()

    def opened(case: Case) -> Ask:
        prepared: list[Any] = []

        def ask(marks: npt.NDArray[np.uint8]) -> Mask:
            if not prepared:
                prepared.append(task.prepare(case.volume))
            return np.asarray(task.predict(prepared[0], Prompts(marks=marks), {}).labels == 1)

        return ask

    return opened


def over_http(url: str, method: str) -> Callable[[Case], Ask]:
    """A method of a server: the volume in a session, strokes uploaded with each request, the mask as NIfTI."""

    def opened(case: Case) -> Ask:
        with case.path.open("rb") as body:
            made = requests.put(f"{url}/session/", files={"files": (case.path.name, body)}, timeout=60)
        made.raise_for_status()
        session = made.json()["session_id"]

        def ask(marks: npt.NDArray[np.uint8]) -> Mask:
            params = {"label_info": INFO, "roi": [], "selected_label_name": "x", "result_extension": ".nii.gz"}
            label = nibabel.Nifti1Image(marks, case.volume.affine).to_bytes()
            query = f"{url}/infer/{method.replace('+', '%2B')}?session_id={session}&output=image"
            form = {"params": json.dumps({**params, "result_dtype": "uint8"})}
            answer = requests.post(query, data=form, files={"label": ("scribbles.nii", label)}, timeout=120)
            answer.raise_for_status()
            return np.asarray(_nifti(answer.content).dataobj) > 0

        return ask

    return opened


def _nifti(body: bytes) -> Any:
    import gzip

    return nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))


def measure(opened: Callable[[Case], Ask], found: list[Case], count: int) -> dict[str, float]:
    """Mean accuracy and median times over the cases, with strokes on `count` slices."""
    dices, kept, first, again, cpu = [], [], [], [], []
    for case in found:
        marks = strokes(case.truth, count, spacing(case.volume.affine), case.seed)
        ask = opened(case)
        for times in (first, again):
            began, worked = time.perf_counter(), time.process_time()
            mask = ask(marks)
            times.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.process_time() - worked) * 1e3)
        dices.append(2 * (mask & case.truth).sum() / (mask.sum() + case.truth.sum()))
        kept.append(np.mean(mask[marks > 0] == (marks[marks > 0] == FOREGROUND)))
    return {
        "dice": float(np.mean(dices)),
        "worst": float(np.min(dices)),
        "obeyed": float(np.mean(kept)),
        "first_ms": statistics.median(first),
        "first_max_ms": max(first),
        "again_ms": statistics.median(again),
        "again_max_ms": max(again),
        "again_cpu_ms": statistics.median(cpu),
    }


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tuned", action="store_true", help="report the volumes that constants were tuned on")
    parser.add_argument("--slices", default="1,3,5")
    parser.add_argument("--structures", default=",".join(STRUCTURES))
    parser.add_argument("--methods", default=",".join(ONLINE))
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL", help="measure this server too")
    options = parser.parse_args()
    rows = []
    for structure in options.structures.split(","):
        found = list(cases(structure, tuned=options.tuned))
        for method in options.methods.split(","):
            runs = {"in process": in_process(method)}
            for server in options.server:
                name, _, url = server.partition("=")
                runs[name] = over_http(url.rstrip("/"), method)
            for name, opened in runs.items():
                counts = [int(count) for count in options.slices.split(",")]
                for count in track(counts, f"{structure}, {method}, {name}", console=Console(stderr=True)):
                    who = {"structure": structure, "volumes": len(found), "method": method, "where": name}
                    rows.append({**who, "slices": count, **measure(opened, found, count)})
    print(json.dumps(rows)) if options.json else show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.{0 if v > 2 else 3}f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
