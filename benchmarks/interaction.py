"""Dice by number of clicks: python -m benchmarks.interaction [--quick] [--json] [--models DIR] [--sets …] [--methods …]

A simulated annotator opens real volumes, clicks into the largest error each time (DeepGrow's first click is deep inside
the structure), and stops after ten clicks. For each method: mean Dice after 0, 1, 3, 5 and 10 clicks; mean number of
clicks to reach Dice 0.85 and 0.90, where a volume that never does counts as eleven; the share of clicks whose label
the last answer has; median ms per click. DeepEdit segments all structures at once; DeepGrow one structure at a time, in
2D on the slice with the largest section, in 3D, and by both together. Then strokes on 1, 3 and 5 slices, as of
`benchmarks.scribbles`.

    hippocampus   160 of 200 volumes for training, the other 40 for testing
    chaos         abdominal T2: 6 volumes for training, 4 others for testing; liver, kidneys, spleen
    unseen        the same 4 test volumes, by models trained on generated torsos only

Models are trained first, as the app trains them, and kept in `--models` as DIR/SET/METHOD with `model.safetensors` and
`card.json`. Existing models are not trained again, and an interrupted training resumes. `--train` only trains.
`--quick` trains briefly on few volumes, as a check that everything works. `--refine` measures the refined answers (the
last ones that our own clients receive). Data are in ../shared/data (CHAOS may not be redistributed).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import scribbles, train_hippocampus
from benchmarks.real_data import DATA
from rayapp.apps.radiology.main import TASKS, pipeline
from rayapp.imaging.phantom import phantom
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import enforce_drawings, lower_drawings
from rayapp.models.store import ModelVersion
from rayapp.training import click_simulation
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import read_pair
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.options import ClickOptions
from rayapp.training.train_task import Pair, TrainRequest

METHODS = ("deepedit", "deepgrow_3d", "deepgrow_2d", "deepgrow_pipeline")
TOGETHER = {"deepgrow_pipeline": ("deepgrow_2d", "deepgrow_3d")}
"""Methods that combine other methods' models."""
CLICKS = (0, 1, 3, 5, 10)
GOALS = (0.85, 0.90)
SHOWN = {"hippocampus": ("hippocampus",), "chaos": ("spleen", "liver", "kidney"), "unseen": ()}
"""For each set, structures to draw strokes on."""


@dataclass(frozen=True)
class Study:
    """Data of one set.

    Attributes:
        labels: Structure name to value.
        train: Pairs for training.
        held: Pairs for testing.
        epochs: Number of epochs to train.
    """

    labels: dict[str, int]
    train: list[Pair]
    held: list[Pair]
    epochs: int

    def brief(self) -> Study:
        """A small part of the set, for `--quick`."""
        return Study(self.labels, self.train[:16], self.held[:4], 4)


def study(name: str, folder: Path) -> Study:
    """A set with its fixed split; generated volumes are written into `folder`."""
    if name == "hippocampus":
        train, held = train_hippocampus.halves(_pairs(DATA / "hippocampus"))
        return Study(train_hippocampus.LABELS, train, held, 40)
    pairs = _pairs(DATA / "chaos_t2")
    labels = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    train = pairs[:6] if name == "chaos" else _torsos(folder, 60)
    return Study(labels, train, pairs[6:], 150 if name == "chaos" else 30)


def _pairs(folder: Path) -> list[Pair]:
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))
    return [Pair(image=image, label=folder / "labelsTr" / image.name) for image in images]


def _torsos(folder: Path, count: int) -> list[Pair]:
    """Generated torsos with the structures and label values of CHAOS."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for seed in range(count):
        pair = Pair(image=folder / f"torso_{seed}.nii.gz", label=folder / f"label_{seed}.nii.gz")
        pairs.append(pair)
        if pair.label.is_file():
            continue
        volume, labels = phantom(seed, shape=(96, 88, 64))
        array = np.zeros(labels.shape, np.uint8)
        for value, name in enumerate(("liver", "right_kidney", "left_kidney", "spleen"), start=1):
            array[labels.array == labels.names[name]] = value
        nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(pair.image)
        nibabel.Nifti1Image(array, volume.affine).to_filename(pair.label)
    return pairs


def trainer(method: str, labels: dict[str, int]) -> BasicTrainTask[Any]:
    """The app's train task for a method, with default options."""
    if method == "deepedit":
        return DeepEditTrainTask(labels=labels, description="", options=ClickOptions())
    made = DeepGrowTrainTask if method == "deepgrow_3d" else DeepGrow2dTrainTask
    return made(description="", options=ClickOptions())


def trained(method: str, over: Study, kept: Path) -> ModelVersion:
    """The model in a folder, trained first if there is none."""
    weights, card = kept / "model.safetensors", kept / "card.json"
    if not card.is_file():
        params = {"max_epochs": over.epochs, "val_interval": max(1, over.epochs // 4)}
        request = TrainRequest(model=method, pairs=over.train, folder=kept / "run", params=params)
        began = time.monotonic()
        result = trainer(method, over.labels).train(request, LocalHost(kept / "host"))
        assert result is not None
        print(f"{kept.parent.name} {method}: trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
        shutil.copy(result.weights, weights)
        card.write_text(json.dumps(result.card))
    return ModelVersion(name=method, version="v1", weights=weights, card=json.loads(card.read_text()))


def task_of(method: str, over: Study, kept: Path) -> Any:
    """The app's inference task for a method, with the models in a folder."""
    if method in TOGETHER:
        return pipeline({part: task_of(part, over, kept) for part in TOGETHER[method]})[method]
    return TASKS[method].from_version(trained(method, over, kept / method))


class Annotator:
    """A simulated annotator of one volume, for one structure or all of them, with one model.

    Args:
        task: The model.
        volume: The image.
        truth: Reference label map, (I, J, K).
        single: Whether the model segments a single structure.
        refine: Whether to request refined answers.
        k: Index of the slice to annotate; None for the whole volume.
    """

    def __init__(
        self, task: Any, volume: Volume, truth: np.ndarray, *, single: bool, refine: bool, k: int | None = None
    ) -> None:
        self.task, self.truth, self.k = task, truth, k
        self.config = {"refine": refine}
        self.prepared = task.prepare(volume)
        structures = [FOREGROUND] if single else list(task.info.structures)
        self.names = [BACKGROUND, *structures]
        self.clicks: dict[str, list[Point]] = {}
        self.spent: list[float] = []
        self.rng = np.random.default_rng(0)
        self.single = single

    def go(self) -> Iterator[float]:
        """Yield Dice before any click, and after each of ten clicks."""
        found = np.zeros_like(self.truth)
        for count in range(CLICKS[-1] + 1):
            if count or not self.single:
                found = self._ask()
            yield _dice(self._seen(found), self._seen(self.truth), len(self.names) - 1)
            if count == 0 and self.single:
                self._click(1, self._first())
            else:
                self._correct(found)
        self.found = self._ask()

    def obeys(self) -> list[bool]:
        """For each click, whether the last answer has its label at the clicked voxel."""
        return [self.found[point] == self.names.index(name) for name, points in self.clicks.items() for point in points]

    def _ask(self) -> np.ndarray:
        info, prompts = self.task.info, Prompts(clicks=self.clicks, slice=self.k)
        began = time.perf_counter()
        found = self.task.predict(self.prepared, lower_drawings(prompts, info, self.truth.shape), self.config)
        labels = enforce_drawings(found.labels, prompts, info)
        self.spent.append((time.perf_counter() - began) * 1e3)
        return labels

    def _first(self) -> tuple[int, int, int]:
        part = click_simulation.largest_component(self._seen(self.truth), 1)
        assert part is not None
        return part.click(self.rng)

    def _correct(self, found: np.ndarray) -> None:
        truth, guess = self._seen(self.truth), self._seen(found)
        for label, place in click_simulation.corrections(
            truth, guess, len(self.names), count=1, rng=self.rng, min_depth=1.0
        ):
            self._click(label, place)

    def _click(self, label: int, place: Sequence[float]) -> None:
        i, j, k = (int(n) for n in place)
        self.clicks.setdefault(self.names[label], []).append((i, j, k if self.k is None else self.k))

    def _seen(self, labels: np.ndarray) -> np.ndarray:
        return labels if self.k is None else labels[:, :, self.k : self.k + 1]


def _dice(found: np.ndarray, truth: np.ndarray, count: int) -> float:
    scores = [
        2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())
        for value in range(1, count + 1)
        if (truth == value).any()
    ]
    return float(np.mean(scores))


def annotators(task: Any, method: str, pair: Pair, labels: dict[str, int], *, refine: bool) -> Iterator[Annotator]:
    """Annotators of one volume: one for all structures, or one for each structure in it."""
    volume, truth, _ = read_pair(pair, labels)
    if method == "deepedit":
        yield Annotator(task, volume, truth, single=False, refine=refine)
        return
    for value in labels.values():
        mask = (truth == value).astype(np.uint8)
        if mask.any():
            k = int(mask.sum((0, 1)).argmax()) if method == "deepgrow_2d" else None
            yield Annotator(task, volume, mask, single=True, refine=refine, k=k)


def measure(name: str, method: str, over: Study, kept: Path, *, refine: bool) -> dict[str, Any]:
    """The row of one method on one set."""
    task = task_of(method, over, kept / name)
    task.load()
    curves, obeying, spent = [], [], []
    for pair in track(over.held, f"{name}, {method}", console=Console(stderr=True)):
        for annotator in annotators(task, method, pair, over.labels, refine=refine):
            curves.append(list(annotator.go()))
            obeying += annotator.obeys()
            spent += annotator.spent[1:]
    dice = np.array(curves)
    reached = {
        goal: [next((n for n, score in enumerate(curve) if score >= goal), CLICKS[-1] + 1) for curve in curves]
        for goal in GOALS
    }
    return {
        "set": name,
        "method": method,
        "annotations": len(curves),
        **{f"dice_{n}": float(dice[:, n].mean()) for n in CLICKS},
        **{f"to_{goal:.2f}": float(np.mean(counts)) for goal, counts in reached.items()},
        "obeyed": float(np.mean(obeying)),
        "ms": statistics.median(spent),
    }


def strokes(name: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the scribbles methods, which need no training."""
    for structure in SHOWN[name]:
        found = list(scribbles.cases(structure, tuned=False))[: 3 if quick else None]
        for method in ("Forest+GraphCut", "Histogram+GraphCut"):
            for count in scribbles.PLACES:
                figures = scribbles.measure(scribbles.in_process(method), found, count)
                kept = {key: figures[key] for key in ("dice", "obeyed", "first_ms", "again_ms")}
                yield {"structure": structure, "method": method, "volumes": len(found), "slices": count, **kept}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", type=Path, help="folder in which models are kept")
    parser.add_argument("--train", action="store_true", help="only train")
    parser.add_argument("--refine", action="store_true", help="measure refined answers")
    parser.add_argument("--sets", default=",".join(SHOWN))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, list[dict[str, Any]]] = {"clicks": [], "strokes": []}
    with tempfile.TemporaryDirectory(prefix="interaction") as scratch:
        kept = options.models or Path(scratch)
        for name in options.sets.split(","):
            over = study(name, kept / "torsos")
            over = over.brief() if options.quick else over
            for method in filter(None, options.methods.split(",")):
                if options.train:
                    task_of(method, over, kept / name)
                else:
                    result["clicks"].append(measure(name, method, over, kept, refine=options.refine))
            result["strokes"] += [] if options.train else strokes(name, quick=options.quick)
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, list[dict[str, Any]]]) -> None:
    """Print tables."""
    for title, rows in result.items():
        if rows:
            table = Table(*rows[0], title=title)
            for row in rows:
                table.add_row(
                    *(f"{v:.{0 if v > 20 else 3}f}" if isinstance(v, float) else str(v) for v in row.values())
                )
            Console(width=180).print(table)


if __name__ == "__main__":
    main()
