"""Train the weights that ship, on phantoms, with the app's own trainers.

    python -m rayapp.apps.radiology.make_weights [--out DIR] [--epochs N] [--seed S] [--model NAME]

Phantoms and their labels are written to a temporary folder. The metrics in the cards are measured on held-out phantoms
that were used neither for training nor for validation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import torch
from rich.progress import Progress as Bars
from rich.progress import track

from rayapp.imaging.phantom import ORGANS, phantom
from rayapp.models.networks import residual_unet
from rayapp.models.store import ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.options import ClickOptions, Options
from rayapp.training.train_task import Pair, Progress, TrainRequest

SPACING = 4.5
ROI = (88, 80, 72)
CASES = 150
HELD_OUT = range(1_000_000, 1_000_006)
"""Seeds of the held-out phantoms; training seeds are below a million."""
VERSION = "shipped-2"
TASKS: dict[str, BasicTrainTask[Any]] = {
    "segmentation": BasicTrainTask(
        labels=ORGANS,
        description="Automatic segmentation of abdominal organs (trained on phantoms, for demonstration)",
        options=Options(learning_rate=3e-3),
    ),
    "deepedit": DeepEditTrainTask(
        labels=ORGANS,
        description="Abdominal organs, corrected by clicks (trained on phantoms, for demonstration)",
        options=ClickOptions(learning_rate=3e-3, val_clicks=len(ORGANS)),
    ),
}


def main() -> None:
    """Train, evaluate and write the models."""
    parser = argparse.ArgumentParser(description="Train the weights that ship, on phantoms.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=sorted(TASKS), help="train this model only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights") as folder:
        seeds = range(options.seed * CASES, (options.seed + 1) * CASES)
        pairs = [write(Path(folder), seed, (112, 104, 72)) for seed in track(seeds, "phantoms")]
        held_out = [write(Path(folder), seed, None) for seed in HELD_OUT]
        for name in [options.model] if options.model else sorted(TASKS, reverse=True):
            make(name, pairs, held_out, Path(folder) / name, options)


def write(folder: Path, seed: int, shape: tuple[int, int, int] | None) -> Pair:
    """Write a phantom and its labels as NIfTI."""
    volume, truth = phantom(seed, shape=shape)
    pair = Pair(image=folder / f"phantom_{seed}.nii.gz", label=folder / f"labels_{seed}.nii.gz")
    nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(pair.image)
    nibabel.Nifti1Image(truth.array, truth.affine).to_filename(pair.label)
    return pair


def make(name: str, pairs: list[Pair], held_out: list[Pair], folder: Path, options: argparse.Namespace) -> None:
    """Train a model, evaluate it on the held-out phantoms, and write its weights and card."""
    task = TASKS[name]
    params = {
        "network": residual_unet(1, 1),
        "spacing": SPACING,
        "roi_size": ROI,
        "max_epochs": options.epochs,
        "seed": options.seed,
    }
    with Bars() as bars:
        bar = bars.add_task(name)

        def show(progress: Progress) -> None:
            text = f"{name} loss {progress.loss:.3f} dice {progress.best or 0:.3f}"
            bars.update(bar, completed=progress.iteration, total=progress.iterations, description=text)

        request = TrainRequest(model=name, pairs=pairs, folder=folder / "run", params=params)
        result = task.train(request, LocalHost(folder / "host", on_progress=show))
    if result is None:
        return
    version = ModelVersion(name=name, version=VERSION, weights=result.weights, card=result.card)
    metrics = task.tally(task.evaluate(version, held_out, task.options)).means()
    card = {**result.card, "version": VERSION, "metrics": metrics}
    shutil.copyfile(result.weights, options.out / f"{name}.safetensors")
    (options.out / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(name, json.dumps(metrics))


if __name__ == "__main__":
    main()
