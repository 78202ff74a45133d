"""Masks beside their prompts, to look at: python -m benchmarks.overlays FOLDER [METHOD …]

For each method a picture of five structures of real volumes that no constant was tuned on, each with other prompts: on
top the slice that shows most of the structure, below it the next one across another axis, and last the slice halfway
from the first to the structure's end. Yellow: prompts on the structure; blue: prompts around it; red: the mask; white:
the reference's outline. Volumes are in ../shared/data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot
from skimage.measure import approximate_polygon, find_contours

from benchmarks.minute_one import Subject, boxed, dice, subjects
from benchmarks.scribbles import strokes
from rayapp.apps.radiology.main import SHIPPED, scribbles, shipped_card
from rayapp.geometry import spacing
from rayapp.inference.infer_task import Prompts, TaskInfo
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.methods.promptable_slice import PromptableSliceTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import bounding_box, enforce_drawings, lower_drawings
from rayapp.models.store import ModelVersion

CHOSEN = ("spleen, CT", "right kidney, CT", "T12, CT", "liver, MR", "hippocampus")
ORGANS = ("liver, MR", "spleen, MR", "right kidney, MR", "liver, CT", "spleen, CT")
"""Structures for the networks of named organs."""

Array = npt.NDArray[Any]
Point = Callable[[Subject], Prompts]


def stroked(subject: Subject) -> Prompts:
    """A line and a ring on each of three slices."""
    return Prompts(marks=strokes(subject.truth, 3, spacing(subject.volume.affine), 5))


def curved(subject: Subject) -> Prompts:
    """The outline on three slices."""
    within = np.flatnonzero(subject.truth.any((0, 1)))
    curves = []
    for k in within[np.rint(np.array((0.2, 0.5, 0.8)) * (len(within) - 1)).astype(int)]:
        for contour in find_contours(np.pad(subject.truth[:, :, k], 1).astype(float), 0.5):
            corners = approximate_polygon(contour, 0.5)[:-1] - 1
            if len(corners) > 2:
                curves.append([(float(i), float(j), float(k)) for i, j in np.clip(corners, 0, None)])
    return Prompts(curves=curves)


def outermost(subject: Subject) -> Prompts:
    """Six extreme points."""
    voxels = np.argwhere(subject.truth)
    points = [voxels[voxels[:, axis].argsort(kind="stable")[end]] for axis in range(3) for end in (0, -1)]
    return Prompts(extremes={"foreground": [(int(i), int(j), int(k)) for i, j, k in points]})


def clicked(subject: Subject) -> Prompts:
    """A click in the middle of the slice that shows most of the structure."""
    k = int(subject.truth.sum((0, 1)).argmax())
    flat = np.argwhere(subject.truth[:, :, k])
    i, j = flat[np.square(flat - flat.mean(0)).sum(1).argmin()]
    return Prompts(clicks={"foreground": [(int(i), int(j), k)]})


def tasks() -> dict[str, tuple[Any, Sequence[Point], Sequence[str]]]:
    """Each method with its five prompts and the structures that they are on."""
    made: dict[str, Any] = {}
    for name, kind in (("segmentation", SegmentationTask), ("deepedit", DeepEditTask), ("deepgrow_3d", PromptableTask)):
        version = ModelVersion(name=name, version="1", weights=SHIPPED / f"{name}.safetensors", card=shipped_card(name))
        made[name] = kind.from_version(version)
    made["deepgrow_2d"] = PromptableSliceTask(made["deepgrow_3d"], "deepgrow_2d", "")
    made |= scribbles({name: made[name] for name in ("segmentation", "deepedit")})
    every: Mapping[str, Sequence[Point]] = {
        "segmentation": [clicked] * 5,
        "deepedit": [clicked] * 5,
        "deepgrow_2d": [clicked] * 5,
        "deepgrow_3d": [clicked, boxed_in, stroked, curved, clicked],
        "ClosedCurves+GraphCut": [curved] * 5,
        "Segmentation+GraphCut": [stroked] * 5,
        "DeepEdit+GraphCut": [stroked] * 5,
    }
    named = ("segmentation", "deepedit", "Segmentation+GraphCut", "DeepEdit+GraphCut")
    usual = [outermost, boxed_in, stroked, stroked, stroked]
    return {name: (task, every.get(name, usual), ORGANS if name in named else CHOSEN) for name, task in made.items()}


def boxed_in(subject: Subject) -> Prompts:
    """A tight box."""
    return boxed(subject.truth)


def label_of(subject: Subject, info: TaskInfo) -> str | None:
    """The model's name for a structure; None if it has none."""
    organ = (subject.group.rpartition(",")[0] or subject.group).replace(" ", "_")
    return next((name for name in info.structures if name == organ or organ.endswith(name)), None)


def answer(task: Any, subject: Subject, prompts: Prompts, config: Mapping[str, Any]) -> Array:
    """The mask of a structure, with prompts as a server lowers and enforces them."""
    info: TaskInfo = task.info
    label = label_of(subject, info)
    if info.structures:
        renamed = {label: next(iter(prompts.clicks.values()))} if label and prompts.clicks else {}
        prompts = replace(prompts, label=label, clicks=renamed)
    asked = lower_drawings(prompts, info, subject.volume.shape)
    labels = task.predict(task.prepare(subject.volume), asked, config).labels
    labels = enforce_drawings(labels, prompts, info)
    single = info.type == "scribbles" or not info.structures
    return np.asarray(labels == (1 if single else info.structures.get(label or "", 255)))


def draw(subject: Subject, prompts: Prompts, mask: Array, axes: Sequence[Any]) -> None:
    """Three slices, one on each of three axes."""
    image, truth, steps = subject.volume.array[0], subject.truth, spacing(subject.volume.affine)
    low, high = np.percentile(image[truth.any((1, 2))], (2, 99))
    on, off = (np.zeros(truth.shape, bool) for _ in range(2))
    if prompts.marks is not None:
        on, off = prompts.marks == FOREGROUND, prompts.marks == BACKGROUND
    for points in (*prompts.clicks.values(), *prompts.extremes.values()):
        on[tuple(np.array(points).T)] = True
    for curve in prompts.curves:
        on[tuple(np.rint(np.array(curve)).astype(int).T)] = True
    if prompts.roi is not None:
        inside = np.zeros(truth.shape, bool)
        inside[tuple(slice(a, b) for a, b in zip(*prompts.roi, strict=True))] = True
        off |= inside & ~np.roll(inside, 1, 0) | inside & ~np.roll(inside, 1, 1)
    largest = [int(truth.sum(tuple(n for n in range(3) if n != axis)).argmax()) for axis in range(3)]
    ends = np.flatnonzero(truth.any((0, 1)))
    corners = np.array(bounding_box([tuple(point) for point in np.argwhere(truth | mask)]))
    around = np.array([np.maximum(corners[0] - 15 / steps, 0), corners[1] + 15 / steps])
    places = ((2, largest[2]), (1, largest[1]), (2, (largest[2] + int(ends[-1])) // 2))
    for ax, (axis, index) in zip(axes, places, strict=True):
        rows, columns = (n for n in range(3) if n != axis)

        def flat(array: Array, axis: int = axis, index: int = index) -> Array:
            return np.asarray(array.take(index, axis))

        shown = np.repeat(np.clip((flat(image) - low) / (high - low), 0, 1)[..., None], 3, -1)
        shown[flat(mask)] = 0.65 * shown[flat(mask)] + 0.35 * np.array((1, 0, 0))
        shown[flat(off)], shown[flat(on)] = (0.2, 0.5, 1), (1, 0.9, 0)
        ax.imshow(shown, aspect=steps[rows] / steps[columns], interpolation="nearest")
        if flat(truth).any():
            ax.contour(flat(truth), [0.5], colors="white", linewidths=0.7)
        ax.set(xlim=around[:, columns], ylim=around[::-1, rows], xticks=[], yticks=[])


def main(folder: Path, names: Sequence[str]) -> None:
    """Draw the methods that are named, or all."""
    matplotlib.use("Agg")
    by_group = {subject.group: subject for subject in reversed(list(subjects(tuned=False, few=2)))}
    for name, (task, prompts, groups) in tasks().items():
        if names and name not in names:
            continue
        task.load()
        figure, axes = pyplot.subplots(3, 5, figsize=(20, 12), squeeze=False, layout="constrained")
        for column, (point, group) in enumerate(zip(prompts, groups, strict=True)):
            subject = by_group[group]
            asked = point(subject)
            mask = answer(task, subject, asked, {})
            seen = mask.any((0, 1)) if task.info.dimension == 2 else np.ones(mask.shape[2], dtype=bool)
            score = dice(mask[:, :, seen], subject.truth[:, :, seen])
            axes[0][column].set_title(f"{group}, {point.__name__}: Dice {score:.3f}")
            draw(subject, asked, mask, axes[:, column])
            print(name, group, point.__name__, f"{score:.3f}", flush=True)
        figure.suptitle(name)
        figure.savefig(folder / f"{name}.png", dpi=55)
        pyplot.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
