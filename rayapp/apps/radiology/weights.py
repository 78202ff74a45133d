"""Train the weights that ship, on phantoms.

    python -m rayapp.apps.radiology.weights [--out DIR] [--minutes M] [--seed S] [--model NAME]

Both networks learn from the same phantoms on the network's grid. The segmentation network sees the image alone;
DeepEdit's sees no clicks in half of its steps and, in the others, clicks that a simulated annotator puts into what it
got wrong. One thread, a fixed time, no GPU needed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress, track
from scipy import ndimage
from torch import Tensor, nn

from rayapp.imaging.phantom import ORGANS, phantom
from rayapp.imaging.volume import Segmentation
from rayapp.inference import guidance, pipeline
from rayapp.inference.deepedit import DeepEditTask
from rayapp.inference.guidance import Position
from rayapp.inference.pipeline import NetworkGrid
from rayapp.inference.segmentation import SegmentationTask
from rayapp.inference.task import Prompts
from rayapp.models.networks import build, residual_unet, save_weights

SPACING = 4.5
ROI = (88, 80, 72)
CROP = (64, 64, 56)
DIVISOR = 8
CASES = 150
HELD_OUT = range(1_000_000, 1_000_006)
"""Seeds never trained on; a training seed is below a million."""
VERSION = "shipped-1"
DESCRIPTIONS = {
    "segmentation": "Automatic segmentation of abdominal organs (trained on phantoms, for demonstration)",
    "deepedit": "Abdominal organs, corrected by clicks (trained on phantoms, for demonstration)",
}

Labels = npt.NDArray[np.uint8]
Case = tuple[Tensor, Tensor]
"""An image (1, R, A, S), float16, and its labels (R, A, S), uint8, on the network's grid."""


def main() -> None:
    """Train, measure and write both models."""
    parser = argparse.ArgumentParser(description="Train the weights that ship, on phantoms.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=sorted(DESCRIPTIONS), help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = [case(options.seed * CASES + n) for n in track(range(CASES), "phantoms")]
    for name in [options.model] if options.model else sorted(DESCRIPTIONS, reverse=True):
        clicks = name == "deepedit"
        torch.manual_seed(options.seed)
        config = residual_unet(1 + (len(ORGANS) + 1) * clicks, len(ORGANS) + 1)
        network = build(config)
        steps = train(network, cases, clicks=clicks, seconds=options.minutes * 60, seed=options.seed, name=name)
        weights = options.out / f"{name}.safetensors"
        save_weights(network, weights)
        card: dict[str, Any] = {
            "description": DESCRIPTIONS[name],
            "labels": ORGANS,
            "network": config,
            "spacing": SPACING,
            "roi_size": ROI,
            "version": VERSION,
            "trained": {"on": f"{CASES} phantoms", "seed": options.seed, "steps": steps, "minutes": options.minutes},
        }
        kind = DeepEditTask if clicks else SegmentationTask
        task = kind(
            name=name, weights=weights, labels=ORGANS, network=config, spacing=SPACING, roi_size=ROI, version=VERSION
        )
        card["metrics"] = measure(task)
        (options.out / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
        print(name, json.dumps(card["metrics"]))


def case(seed: int) -> Case:
    """A phantom on the network's grid."""
    volume, truth = phantom(seed, shape=(112, 104, 72))
    grid = NetworkGrid.fit(volume.shape, volume.affine, spacing_mm=SPACING, limit=ROI, divisor=DIVISOR)
    image = pipeline.normalise(grid.from_source(volume.array[0]))
    return torch.from_numpy(image)[None].half(), torch.from_numpy(_labels_on(grid, truth))


def _labels_on(grid: NetworkGrid, truth: Segmentation) -> Labels:
    """The label at each network voxel's centre."""
    nearest = [
        np.clip(np.rint((np.arange(m) + 0.5) * n / m - 0.5), 0, n - 1).astype(int)
        for n, m in zip(grid.source, grid.coarse, strict=True)
    ]
    turned = grid.orientation.apply(truth.array[np.ix_(*nearest)])
    padding = [(0, p - n) for p, n in zip(grid.padded, turned.shape, strict=True)]
    return np.ascontiguousarray(np.pad(turned, padding))


def train(network: nn.Module, cases: Sequence[Case], *, clicks: bool, seconds: float, seed: int, name: str) -> int:
    """Train in place for so long; returns the steps made."""
    from monai.losses import DiceCELoss  # takes seconds to import

    rng = np.random.default_rng(seed)
    loss_of: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, squared_pred=True, batch=True
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    started, steps, shown = time.monotonic(), 0, 0.0
    with Progress() as progress:
        bar = progress.add_task(name, total=seconds)
        while (spent := time.monotonic() - started) < seconds:
            done = spent / seconds
            warm = min(1.0, (steps + 1) / 50)
            for group in optimiser.param_groups:
                group["lr"] = warm * (3e-5 + 3e-3 * 0.5 * (1 + np.cos(np.pi * done)))
            image, labels = _crop(rng, cases[int(rng.integers(len(cases)))])
            image = _disturbed(rng, image)
            if clicks:
                image = torch.cat([image, _annotated(rng, network, image, labels)])
            network.train()
            loss = loss_of(network(image[None]), labels[None, None].float())
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            steps += 1
            shown = 0.95 * shown + 0.05 * loss.item() if steps > 1 else loss.item()
            progress.update(bar, completed=spent, description=f"{name} step {steps} loss {shown:.3f}")
    network.eval()
    return steps


def _crop(rng: np.random.Generator, whole: Case) -> Case:
    image, labels = whole
    padding = [n for size, most in zip(labels.shape[::-1], CROP[::-1], strict=True) for n in (0, max(0, most - size))]
    image = nn.functional.pad(image, padding, value=pipeline.PADDING)
    labels = nn.functional.pad(labels, padding)
    corner = [int(rng.integers(0, size - most + 1)) for size, most in zip(labels.shape, CROP, strict=True)]
    box = tuple(slice(c, c + n) for c, n in zip(corner, CROP, strict=True))
    return image[(slice(None), *box)].float(), labels[box]


def _disturbed(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Noise, contrast and brightness of other scanners."""
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * rng.uniform(0, 0.2)
    changed = image * rng.uniform(0.8, 1.25) + rng.uniform(-0.2, 0.2) + noise
    return changed.clamp(pipeline.PADDING, -pipeline.PADDING)


def _annotated(rng: np.random.Generator, network: nn.Module, image: Tensor, labels: Tensor) -> Tensor:
    """Guidance channels: empty in half of the cases, else of one to six clicks into the largest errors."""
    classes = len(ORGANS) + 1
    clicks: list[list[Position]] = [[] for _ in range(classes)]
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    if rng.random() < 0.5:
        network.eval()
        with torch.no_grad():
            empty = torch.zeros(classes, *shape)
            guess = network(torch.cat([image, empty])[None])[0].argmax(0).numpy()
        truth = labels.numpy()
        for value in rng.choice(classes, int(rng.integers(1, classes + 1)), replace=False):
            point = click(rng, truth, guess, int(value))
            if point is not None:
                clicks[(int(value) - 1) % classes].append(point)
    return torch.from_numpy(guidance.encode(clicks, shape))


def click(rng: np.random.Generator, truth: Labels, guess: npt.NDArray[Any], value: int) -> Position | None:
    """A click deep inside the largest connected part of `value` that the guess missed, or inside `value` if none."""
    missed = (truth == value) & (guess != value)
    parts, count = ndimage.label(missed)
    if count:
        where = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    elif value and rng.random() < 0.5:
        where = truth == value
    else:
        return None
    depth = ndimage.distance_transform_edt(np.pad(where, 1))[1:-1, 1:-1, 1:-1]
    if not depth.any():
        return None
    deep = np.argwhere(depth >= 0.6 * depth.max())
    x, y, z = deep[int(rng.integers(len(deep)))]
    return float(x), float(y), float(z)


def measure(task: SegmentationTask) -> dict[str, Any]:
    """Dice on the source grid of held-out phantoms: automatic and, for DeepEdit, after one click a structure."""
    rng = np.random.default_rng(0)
    automatic, clicked = [], []
    for seed in track(HELD_OUT, f"{task.type} held-out"):
        volume, truth = phantom(seed)
        prepared = task.prepare(volume)
        labels = task.predict(prepared, Prompts(), {}).labels
        automatic.append(dice(labels, truth.array))
        if isinstance(task, DeepEditTask):
            clicks = {}
            for name, value in ORGANS.items():
                point = click(rng, truth.array, labels, value)
                clicks[name] = [(int(point[0]), int(point[1]), int(point[2]))] if point else []
            clicked.append(dice(task.predict(prepared, Prompts(clicks=clicks), {}).labels, truth.array))
    figures = {"dice": _summary(automatic)}
    if clicked:
        figures["dice_after_one_click_each"] = _summary(clicked)
    return figures


def dice(found: Labels, truth: npt.NDArray[Any]) -> list[float]:
    """Dice of each organ; NaN where neither has it."""
    scores = []
    for value in ORGANS.values():
        mine, theirs = found == value, truth == value
        total = int(mine.sum()) + int(theirs.sum())
        scores.append(2 * int((mine & theirs).sum()) / total if total else float("nan"))
    return scores


def _summary(scores: list[list[float]]) -> dict[str, float]:
    table = np.array(scores)
    means = {name: round(float(np.nanmean(table[:, n])), 4) for n, name in enumerate(ORGANS)}
    return {"mean": round(float(np.nanmean(table)), 4), **means}


if __name__ == "__main__":
    main()
