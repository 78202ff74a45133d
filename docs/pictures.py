"""The pictures of prompts in the documentation: `python -m docs.pictures [NAME …]` draws docs/NAME.png again.

Each shows slices of a generated torso: above, the prompts; below, the resulting mask, with the true outline in white.
Clicks correct the shipped DeepEdit, one for each column; all others need no model. The result is deterministic.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot
from skimage.measure import approximate_polygon, find_contours

from benchmarks.scribbles import strokes
from rayapp.apps.radiology.main import SHIPPED, scribbles, shipped_card
from rayapp.geometry import Orientation, spacing
from rayapp.imaging.overlay import COLOURS, OPACITY
from rayapp.imaging.phantom import phantom
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Point, Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import bounding_box, enforce_drawings, lower_drawings
from rayapp.models.store import ModelVersion
from rayapp.training import click_simulation

STROKED, CLICKED = 77, 2_000_003
"""Seeds of the torsos."""
ORGAN = "liver"
CLICKS = 5
PLACES = (0.2, 0.35, 0.5, 0.8, 0.92)
"""Where the slices that are shown lie in the organ's extent."""
DRAWN = (0.2, 0.5, 0.8)
"""Those with curves, and with strokes."""
WINDOW = (-150, 300)
ON, BESIDE = (1.0, 0.75, 0.2), (0.3, 0.65, 1.0)
"""Colours of what points at a structure and of what points beside it."""

Array = npt.NDArray[Any]
Lines = Sequence[tuple[Array, Any]]


@dataclass(frozen=True, kw_only=True)
class Torso:
    """An image whose axes are R, A, S, and the organs' labels."""

    volume: Volume
    labels: Array
    names: Mapping[str, int]

    @classmethod
    def generated(cls, seed: int) -> Torso:
        """The torso of that seed."""
        volume, organs = phantom(seed)
        turn = Orientation.of(volume.affine)
        turned = Volume(array=turn.apply(volume.array), affine=turn.affine(volume.affine, volume.shape))
        return cls(volume=turned, labels=turn.apply(organs.array), names=organs.names)

    def grey(self, k: int) -> Array:
        """A slice in shades, (I, J, 3)."""
        low, high = WINDOW
        return np.repeat(np.clip((self.volume.array[0, :, :, k, None] - low) / (high - low), 0, 1), 3, axis=2)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A slice with prompts, and with the mask; lines and dots, (x, y) in voxels, lie over the first."""

    above: Array
    below: Array
    truth: Array
    lines: Lines = ()
    dots: Lines = ()


def coloured(shade: Array, labels: Array) -> Array:
    """The slice with a mask over it."""
    for value in np.unique(labels[labels > 0]):
        here = labels == value
        shade[here] = shade[here] * (1 - OPACITY) + np.array(COLOURS[value - 1]) / 255 * OPACITY
    return shade


def draw(to: Path, torso: Torso, columns: Sequence[Column]) -> None:
    """The patient's right on the left, front up, true to the millimetre."""
    step = spacing(torso.volume.affine)
    wide, high = step[:2] * columns[0].truth.shape
    size = (11, 22 / len(columns) * high / wide)
    figure, axes = pyplot.subplots(2, len(columns), figsize=size, facecolor="black", squeeze=False)
    for column, (above, below) in zip(columns, axes.T, strict=True):
        for axis, image in ((above, column.above), (below, column.below)):
            axis.imshow(image.transpose(1, 0, 2), aspect=step[1] / step[0], interpolation="bilinear")
            axis.set(xlim=(image.shape[0] - 0.5, -0.5), ylim=(-0.5, image.shape[1] - 0.5))
            axis.axis("off")
        for value in np.unique(column.truth[column.truth > 0]):
            below.contour(value == column.truth.T, [0.5], colors="white", linewidths=0.6)
        for line, colour in column.lines:
            above.plot(*line.T, color=colour, linewidth=1.4)
        for dots, colour in column.dots:
            above.plot(*dots.T, "o", color=colour, markeredgecolor="black", markersize=6)
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(to, dpi=100, facecolor="black")
    pyplot.close(figure)


def clicked(to: Path) -> None:
    """Clicks into the largest errors: the mask before each and after it."""
    torso = Torso.generated(CLICKED)
    weights, card = SHIPPED / "deepedit.safetensors", shipped_card("deepedit")
    task = DeepEditTask.from_version(ModelVersion(name="deepedit", version="v1", weights=weights, card=card))
    prepared, names = task.prepare(torso.volume), list(task.info.labels)
    clicks: dict[str, list[Point]] = {}
    found, rng, columns = task.predict(prepared, Prompts(), {}).labels, np.random.default_rng(0), []
    for _ in range(CLICKS):
        ((label, place),) = click_simulation.corrections(
            torso.labels, found, len(names), count=1, rng=rng, min_depth=1.0
        )
        i, j, k = (int(n) for n in place)
        clicks.setdefault(names[label], []).append((i, j, k))
        before, found = found, task.predict(prepared, Prompts(clicks=clicks), {"refine": True}).labels
        above, below = (coloured(torso.grey(k), mask[:, :, k]) for mask in (before, found))
        dot = (np.array([(i, j)]), ON if label else BESIDE)
        columns.append(Column(above=above, below=below, truth=torso.labels[:, :, k], dots=[dot]))
    draw(to, torso, columns)


def stroked(truth: Array, step: Array) -> Prompts:
    """A line in the organ and a ring around it on three slices."""
    return Prompts(marks=strokes(truth, 3, step, STROKED))


def boxed(truth: Array, _: Array) -> Prompts:
    """A box, a voxel larger than the organ."""
    low, high = bounding_box([tuple(point) for point in np.argwhere(truth)])
    return Prompts(roi=(tuple(max(0, n - 1) for n in low), tuple(np.minimum(np.add(high, 1), truth.shape))))


def curved(truth: Array, _: Array) -> Prompts:
    """The outlines on three slices, as polygons."""
    curves = []
    for k in slices_at(DRAWN, truth):
        for outline in find_contours(np.pad(truth[:, :, k], 1).astype(float), 0.5):
            corners = approximate_polygon(outline - 1, 0.3)[:-1]
            curves.append(tuple((float(i), float(j), float(k)) for i, j in corners))
    return Prompts(curves=tuple(curves))


def outermost(truth: Array, _: Array) -> Prompts:
    """The first and the last voxel along each axis, in the middle of those."""
    voxels, points = np.argwhere(truth), []
    for axis in range(3):
        for end in (voxels[:, axis].min(), voxels[:, axis].max()):
            there = voxels[voxels[:, axis] == end]
            i, j, k = there[np.linalg.norm(there - there.mean(0), axis=1).argmin()]
            points.append((int(i), int(j), int(k)))
    return Prompts(extremes={ORGAN: tuple(points)}, label=ORGAN)


def slices_at(places: Sequence[float], truth: Array) -> list[int]:
    """The slices at some places in the organ's extent."""
    within = np.flatnonzero(truth.any((0, 1)))
    return [int(within[round(place * (len(within) - 1))]) for place in places]


def columns_of(torso: Torso, truth: Array, prompts: Prompts, mask: Array) -> Iterator[Column]:
    """Slices with what was drawn on them; an extreme point is on the slice that is nearest to it."""
    points = np.array([point for six in prompts.extremes.values() for point in six]).reshape(-1, 3)
    slices = slices_at(PLACES, truth)
    nearest = np.abs(points[:, 2:] - slices).argmin(axis=1)
    for number, k in enumerate(slices):
        above, lines = torso.grey(k), [(np.array([*c, c[0]])[:, :2], ON) for c in prompts.curves if c[0][2] == k]
        for mark, colour in ((BACKGROUND, BESIDE), (FOREGROUND, ON)):
            if prompts.marks is not None:
                above[np.asarray(prompts.marks)[:, :, k] == mark] = colour
        if prompts.roi is not None:
            (a, b, _), (c, d, _) = prompts.roi
            lines.append((np.array([(a, b), (c, b), (c, d), (a, d), (a, b)]) - 0.5, BESIDE))
        dots = [(points[nearest == number, :2], ON)]
        below = coloured(torso.grey(k), mask[:, :, k])
        yield Column(above=above, below=below, truth=truth[:, :, k], lines=lines, dots=dots)


def without_model(method: str, point: Callable[[Array, Array], Prompts]) -> Callable[[Path], None]:
    """The picture of a method that needs no model, for what `point` points at."""

    def drawn(to: Path) -> None:
        torso = Torso.generated(STROKED)
        truth = (torso.labels == torso.names[ORGAN]).astype(np.uint8)
        task, prompts = scribbles({})[method], point(truth > 0, spacing(torso.volume.affine))
        task.load()
        asked = lower_drawings(prompts, task.info, torso.volume.shape)
        mask = enforce_drawings(task.predict(task.prepare(torso.volume), asked, {}).labels, prompts, task.info)
        draw(to, torso, list(columns_of(torso, truth, prompts, mask)))

    return drawn


PICTURES: Mapping[str, Callable[[Path], None]] = {
    "clicks": clicked,
    "scribbles": without_model("Forest+GraphCut", stroked),
    "box": without_model("Forest+GraphCut", boxed),
    "curves": without_model("ClosedCurves+GraphCut", curved),
    "extremes": without_model("Forest+GraphCut", outermost),
}


def main(pictures: Mapping[str, Callable[[Path], None]], description: str | None) -> None:
    """The command line: draw the pictures that are named, or all.

    Args:
        pictures: by name, each a function that draws to a file.
        description: of the command.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(pictures)}; all by default")
    matplotlib.use("Agg")
    for name in parser.parse_args().names or pictures:
        pictures[name](Path(__file__).with_name(f"{name}.png"))


if __name__ == "__main__":
    main(PICTURES, __doc__)
