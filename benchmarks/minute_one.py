"""Any structure of any scan from the first click: python -m benchmarks.minute_one [--tuned] [--weights FILE] [--json]

`--trials FOLDER` measures nothing: it writes the tuned structures for a training to validate on.

The protocol of the CVPR 2025 challenge on interactive segmentation: a box (or nothing), then five clicks, each at the
middle of the largest connected error; Dice after each. Beside it strokes on the three largest slices of each plane, one
line on the structure and one ring around it, drawn tightly (as `benchmarks.scribbles` does), loosely (25 mm and more
away) and shakily; and a lasso on the largest slice of each plane. No method has seen any of these images in training.

What was looked at while the network, its scenes and the zoom were designed is in `TUNED`; only others are reported
unless `--tuned` asks for those. Volumes lie in ../shared/data. Reference masks of the CT are by TotalSegmentator.

    network   the promptable network that ships, or the one in `--weights`
    forest    Forest+GraphCut, which needs no weights
    peer      a model folder of nnInteractive, with `--peer FOLDER` and the extra `rayapp[nninteractive]`; its official
              weights are licensed CC BY-NC-SA 4.0
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from benchmarks.real_data import DATA
from rayapp.geometry import spacing
from rayapp.imaging.volume import Volume
from rayapp.inference.energy import likelihood
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.methods.nninteractive_infer import NNInteractiveTask
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.models.nninteractive_folder import NNInteractiveFolder
from rayapp.training.synthetic.trials import corrected

SHIPPED = Path(__file__).parents[1] / "rayapp" / "apps" / "radiology" / "weights"
CLICKS = 5
CT = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach", 11: "lung lobe",
    14: "lower lung lobe", 20: "colon", 30: "L2", 31: "L1", 32: "T12", 52: "aorta", 63: "vena cava", 64: "portal vein",
    69: "humerus", 70: "other humerus", 79: "spinal cord", 86: "autochthon", 117: "rib cartilage",
}  # fmt: skip
TUNED = {
    "chaos_t2": {"1", "2", "3"},
    "hippocampus": {"001", "037", "058", "089", "107", "142"},
    "ct": {"left kidney", "stomach", "aorta", "spinal cord"},
}
"""Volumes, and for the CT structures, that design choices were made on."""

Mask = NDArray[np.bool_]
Ask = Callable[[Prompts], Mask]


@dataclass(frozen=True)
class Subject:
    """A structure of a volume; `group` is what its figures are averaged with."""

    group: str
    volume: Volume
    truth: Mask


@dataclass
class Figures:
    """Dice and seconds of one group, by the prompts' kind."""

    dice: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)


def subjects(*, tuned: bool, few: int) -> Iterator[Subject]:
    """Structures that were tuned on, or all others; of each data set at most `few` volumes."""
    organs = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
    for folder, number, names in (("chaos_t2", 6, organs), ("hippocampus", 12, {0: "hippocampus"})):
        paths = sorted((DATA / folder / "imagesTr").glob("*.nii.gz"))
        chosen = [path for path in paths if (path.name[number:-7] in TUNED[folder]) == tuned]
        for path in chosen[:: max(1, len(chosen) // few)][:few]:
            image, labels = nibabel.load(path), nibabel.load(DATA / folder / "labelsTr" / path.name)
            volume = Volume(array=np.asarray(image.dataobj)[None], affine=image.affine)
            reference = np.asarray(labels.dataobj)
            for value, name in names.items():
                yield Subject(f"{name}, MR" if value else name, volume, reference == value if value else reference > 0)
    image, labels = (nibabel.load(DATA / "totalseg" / f"example_{name}.nii.gz") for name in ("ct_sm", "seg"))
    volume = Volume(array=np.asarray(image.dataobj)[None], affine=image.affine)
    for value, name in CT.items():
        truth = np.asarray(labels.dataobj) == value
        if truth.sum() > 200 and (name in TUNED["ct"]) == tuned:
            yield Subject(f"{name}, CT", volume, truth)


def write_trials(folder: Path, chosen: Sequence[Subject]) -> None:
    """Keep structures as `rayapp.training.synthetic.trials` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, subject in enumerate(chosen):
        name = f"{number:02} {subject.group}.npz"
        image, steps = subject.volume.array[0], spacing(subject.volume.affine)
        np.savez(folder / name, image=image, mask=subject.truth, spacing=steps)


def clicked(ask: Ask, subject: Subject, box: Prompts | None) -> Iterator[float]:
    """Dice after a box, if there is one, and each of five clicks."""
    answer = None
    if box is not None:
        answer = ask(box)
        yield dice(answer, subject.truth)

    turns, said = [] if box is None else [box], set[Point]()

    def click(on: Sequence[Point], off: Sequence[Point]) -> Mask:
        clicks = {name: tuple(points) for name, points in (("foreground", on), ("background", off)) if points}
        turns.append(Prompts(clicks={name: tuple(set(points) - said) for name, points in clicks.items()}))
        said.update(on, off)
        return ask(Prompts(clicks=clicks, roi=box.roi if box is not None else None, turns=tuple(turns)))

    for after in corrected(click, subject.truth, spacing(subject.volume.affine), CLICKS, answer):
        yield dice(after, subject.truth)


def boxed(truth: Mask) -> Prompts:
    """A tight box."""
    low, high = np.argwhere(truth).min(0), np.argwhere(truth).max(0) + 1
    return Prompts(roi=((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))))


def stroked(subject: Subject, axis: int, kind: str, random: np.random.Generator) -> Prompts:
    """A line and a ring on each of the three largest slices across an axis that lie apart."""
    steps = spacing(subject.volume.affine)
    others = [other for other in range(3) if other != axis]
    marks = np.zeros(subject.truth.shape, np.uint8)
    for number in apart(subject.truth, axis, 3):
        flat = np.take(subject.truth, number, axis)
        depth = ndimage.distance_transform_edt(np.pad(flat, 1), sampling=steps[others])[1:-1, 1:-1]
        away = ndimage.distance_transform_edt(~flat, sampling=steps[others])
        wide = 2 * depth.max()
        gap = {"tight": wide * random.uniform(0.125, 0.25), "loose": 25.0, "shaky": 12.0}[kind]
        deep = np.argwhere(depth >= 0.5 * depth.max())
        ends = deep[random.integers(len(deep), size=2)].astype(float)
        line = np.linspace(ends[0], ends[1], 80)
        ring = (away >= gap) & (away < gap + steps[others].max())
        if kind == "shaky":
            line = line + ndimage.gaussian_filter1d(random.standard_normal(line.shape), 6, axis=0) * 4
            angle = np.arctan2(*np.moveaxis(np.indices(flat.shape) - np.argwhere(flat).mean(0)[:, None, None], 0, 0))
            ring = (away >= gap * (1 + 0.5 * np.sin(3 * angle))) & ring_of(away, gap * (1 + 0.5 * np.sin(3 * angle)))
            ring &= (angle > -2.5) & (angle < 2.0)
        at = np.clip(np.rint(line), 0, np.array(flat.shape) - 1).astype(int)
        at = at[flat[tuple(at.T)]]
        plane = np.moveaxis(marks, axis, 0)[number]
        plane[ring] = BACKGROUND
        plane[tuple(at.T)] = FOREGROUND
    return Prompts(marks=marks)


def ring_of(away: NDArray[np.float64], gap: NDArray[np.float64]) -> Mask:
    """Two millimetres of a ring at a distance."""
    return np.asarray(away < gap + 2)


def lassoed(subject: Subject, axis: int) -> Prompts:
    """A curve a little outside the structure on its largest slice."""
    number = apart(subject.truth, axis, 1)[0]
    flat = np.take(subject.truth, number, axis)
    centre = np.argwhere(flat).mean(0)
    offset = np.argwhere(flat) - centre
    angle = np.arctan2(offset[:, 1], offset[:, 0])
    curve = []
    for start in np.linspace(-np.pi, np.pi, 24, endpoint=False):
        near = np.abs(np.angle(np.exp(1j * (angle - start)))) < np.pi / 12
        reach = np.hypot(*offset[near].T).max() if near.any() else 1.0
        place = np.rint(centre + (reach * 1.1 + 1) * np.array([np.cos(start), np.sin(start)])).astype(int)
        place = np.clip(place, 0, np.array(flat.shape) - 1)
        curve.append(tuple(int(n) for n in np.insert(place, axis, number)))
    return Prompts(curves=[curve])


def apart(truth: Mask, axis: int, count: int) -> list[int]:
    """The slices with the largest outlines, none beside another."""
    areas = truth.sum(tuple(other for other in range(3) if other != axis))
    filled = np.flatnonzero(areas)
    gap = max(1, len(filled) // (2 * count))
    chosen: list[int] = []
    for number in filled[np.argsort(-areas[filled])]:
        if len(chosen) < count and all(abs(number - other) >= gap for other in chosen):
            chosen.append(int(number))
    return chosen


def dice(answer: Mask, truth: Mask) -> float:
    """Overlap of two masks."""
    return float(2 * np.count_nonzero(answer & truth) / max(1, np.count_nonzero(answer) + np.count_nonzero(truth)))


def network(weights: Path, card: Path | None) -> PromptableTask:
    """The network in a safetensors file or in a training's checkpoint."""
    if weights.suffix == ".pt":
        from rayapp.models.networks import save_weights
        from rayapp.models.promptable import Promptable

        state = torch.load(weights, weights_only=True)
        config = {"dimensions": 3, "widths": state["widths"], "tail": state["tail"]}
        made = Promptable(**config)
        made.load_state_dict(state["average"])
        weights = weights.with_suffix(".safetensors")
        save_weights(made, weights)
    else:
        config = json.loads((card or weights.with_suffix(".json")).read_text())["network"]
    return PromptableTask(name="deepgrow_3d", weights=weights, network=config)


def measure(task: Any, chosen: Sequence[Subject], kinds: Sequence[str], name: str) -> dict[str, Figures]:
    """All figures of a method, by group."""
    figures: dict[str, Figures] = defaultdict(Figures)
    task.load()
    kept: dict[int, Any] = {}
    for subject in track(chosen, name):
        if id(subject.volume) not in kept:
            kept = {id(subject.volume): task.prepare(subject.volume)}
        prepared, into = kept[id(subject.volume)], figures[subject.group]

        def ask(prompts: Prompts, prepared: Any = prepared, into: Figures = into) -> Mask:
            start = time.perf_counter()
            found = task.predict(prepared, prompts, {}).labels
            into.seconds.append(time.perf_counter() - start)
            return np.asarray(found > 0)

        if "box" in kinds:
            for number, value in enumerate(clicked(ask, subject, boxed(subject.truth))):
                into.dice[f"box+{number}" if number else "box"].append(value)
        if "clicks" in kinds:
            for number, value in enumerate(clicked(ask, subject, None), 1):
                into.dice[f"click {number}"].append(value)
        for axis, plane in enumerate("ijk"):
            random = np.random.default_rng(axis)
            for kind in ("tight", "loose", "shaky"):
                if kind in kinds:
                    answer = ask(stroked(subject, axis, kind, random))
                    into.dice[f"{kind} {plane}"].append(dice(answer, subject.truth))
            if "lasso" in kinds:
                into.dice[f"lasso {plane}"].append(dice(ask(lassoed(subject, axis)), subject.truth))
    return figures


def shown(figures: dict[str, Figures], title: str) -> Table:
    """Means per group, and over groups."""
    columns = list(next(iter(figures.values())).dice)
    table = Table(title=title)
    for column in ("structure", *columns, "ms"):
        table.add_column(column, justify="left" if column == "structure" else "right")
    means = {group: [statistics.mean(one.dice[column]) for column in columns] for group, one in figures.items()}
    for group, one in figures.items():
        values = [f"{value:.3f}"[1:] if value < 1 else "1.0" for value in means[group]]
        count = len(one.dice[columns[0]])
        table.add_row(f"{group} ({count})", *values, f"{1000 * statistics.median(one.seconds):.0f}")
    overall = [f"{statistics.mean(values):.3f}"[1:] for values in zip(*means.values(), strict=True)]
    every = [second for one in figures.values() for second in one.seconds]
    table.add_row("mean", *overall, f"{1000 * statistics.median(every):.0f}", style="bold")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuned", action="store_true", help="the structures that design choices were made on")
    parser.add_argument("--methods", nargs="+", default=["network", "forest"], choices=["network", "forest"])
    parser.add_argument("--kinds", nargs="+", default=["box", "clicks", "tight", "loose", "shaky", "lasso"])
    parser.add_argument("--few", type=int, default=4, help="volumes of each data set")
    parser.add_argument("--weights", type=Path, default=SHIPPED / "deepgrow_3d.safetensors")
    parser.add_argument("--peer", metavar="FOLDER", help="a model folder of nnInteractive to measure beside these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trials", type=Path, help="a folder to write the tuned structures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = list(subjects(tuned=options.tuned, few=options.few))
    if options.trials:
        write_trials(options.trials, list(subjects(tuned=True, few=options.few)))
        return
    forest = ScribblesTask(fit=likelihood.forest, description="")
    peer = NNInteractiveTask("peer", NNInteractiveFolder.find(options.peer)) if options.peer else None
    for name in options.methods + ["peer"] * bool(options.peer):
        task = peer if name == "peer" else network(options.weights, None) if name == "network" else forest
        found = measure(task, chosen, options.kinds, name)
        if options.json:
            print(
                json.dumps({name: {group: {"dice": one.dice, "seconds": one.seconds} for group, one in found.items()}})
            )
        else:
            split = "tuned on" if options.tuned else "reported"
            Console(width=200).print(shown(found, f"{name}, {split}"))


if __name__ == "__main__":
    main()
