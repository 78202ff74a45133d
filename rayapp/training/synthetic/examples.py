"""Training cases: a structure of a scene, its first prompts, and views of it from near and far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.zoom.glance import across
from rayapp.inference.zoom.marks import Marks
from rayapp.inference.zoom.view import Source, View, normalised
from rayapp.training.synthetic import prompts
from rayapp.training.synthetic.anatomy import anatomy
from rayapp.training.synthetic.appearance import Acquisition, acquire
from rayapp.training.synthetic.gallery import excerpt
from rayapp.training.synthetic.scenes import Scene, scene
from rayapp.training.synthetic.shapes import Bools, Random, sides

BODIES = 0.4
"""Share of scenes with the layout of bodies."""
SLICES = 0.1
"""Share of cases on a single slice of an image."""
REAL = 0.35
"""Share of scenes that are excerpts of real images, if there is a gallery."""

Learned = tuple[Source, Callable[[Random], Bools | None]]


@dataclass(frozen=True)
class Look:
    """One view of a case.

    Attributes:
        view: the view.
        image: (edge, edge, edge), normalised, as float16.
        truth: the share of each voxel that lies in the structure, (edge, edge, edge), 0 to 255.
        prompted: True for a view around the first prompts, False for a patch in which a mask is refined.
    """

    view: View
    image: NDArray[np.float16]
    truth: NDArray[np.uint8]
    prompted: bool


@dataclass(frozen=True)
class Case:
    """A structure to learn from.

    Attributes:
        marks: the first prompts.
        looks: views of it; the first is prompted.
        volume: volume of the whole structure, mm³.
        length: its longest side, mm.
        spacing: voxel spacing of the image, mm.
    """

    marks: Marks
    looks: list[Look]
    volume: float
    length: float
    spacing: NDArray[np.float64]


def cases(
    seed: int | list[int],
    edges: Sequence[int],
    count: int = 20,
    bodies: float = BODIES,
    gallery: Sequence[Path] = (),
) -> Iterator[Case]:
    """An endless sequence of cases.

    Args:
        seed: seed of scenes and cases.
        edges: edges of views in voxels; all views of a case have the same one.
        count: number of cases from each scene.
        bodies: share of random scenes with the layout of bodies.
        gallery: real images to learn from besides random scenes, see `gallery`.
    """
    random = np.random.default_rng(seed)
    while True:
        if gallery and random.random() < REAL:
            source, structure = _part(random, gallery)
        else:
            source, structure = _scene(random, bodies)
        for _ in range(count):
            mask = structure(random)
            if mask is None:
                break
            edge = int(random.choice(edges))
            if random.random() < SLICES:
                yield case(random, *_slice(random, source, mask), edge)
            else:
                yield case(random, source, mask, edge)


def _part(random: Random, gallery: Sequence[Path]) -> Learned:
    """An excerpt of a real image, and a function that chooses a structure in it."""
    part = excerpt(random, gallery[int(random.integers(len(gallery)))])
    return part.source, part.structure


def _scene(random: Random, bodies: float) -> Learned:
    """The image of a random scene, and a function that chooses a structure in it."""
    drawn = anatomy(random) if random.random() < bodies else scene(random, int(random.integers(72, 112)))
    taken = acquire(random, drawn)
    return Source(taken.image, taken.spacing), lambda random: _structure(random, drawn, taken)


def case(random: Random, source: Source, mask: Bools, edge: int) -> Case:
    """A case of one structure in an image.

    Args:
        random: source of randomness.
        source: the image.
        mask: the structure on the image's voxels, not empty.
        edge: edge of the views, voxels.
    """
    spacing = source.spacing
    marks = prompts.first(random, mask, spacing)
    bounds = marks.bounds()
    assert bounds is not None
    voxels = np.argwhere(mask)
    low, high = (voxels.min(0) - 0.5) * spacing, (voxels.max(0) + 0.5) * spacing
    along = across(source.column)
    length = float((high - low)[along].max())
    prompted, centre = (np.array(bounds.low) + bounds.high) / 2, (low + high) / 2
    reach = float((np.array(bounds.high) - bounds.low)[along].max())
    truth = Source(mask.view(np.uint8) * np.uint8(255), spacing)
    smallest, largest = 10 * spacing.min(), 1.3 * float(max(source.extent.max(), 10 * spacing.min()))

    def look(at: NDArray[np.float64], size: float, shake: float, use: bool) -> Look:
        size = float(np.clip(size, smallest, largest))
        place = at + random.uniform(-shake, shake, 3) * size
        view = View.around(place, size, edge, source.column)
        inside = source.inside(view)
        share = np.where(inside, truth.sample(view), 0)
        image = normalised(source.sample(view), inside)
        return Look(view, image.astype(np.float16), np.rint(share).astype(np.uint8), use)

    looks = []
    for _ in range(2):
        draw = random.random()
        if draw < 0.45:  # about the structure's size
            size, at, shake = length * np.exp(random.uniform(np.log(1.05), np.log(2.5))), prompted, 0.06
        elif draw < 0.55:
            size, at, shake = length * random.uniform(1.1, 1.8), centre, 0.05
        elif draw < 0.80:  # too close
            size, at, shake = length * np.exp(random.uniform(np.log(0.12), np.log(1.05))), prompted, 0.06
        else:  # far
            size, at, shake = length * np.exp(random.uniform(np.log(2.5), np.log(9))), prompted, 0.06
        looks.append(look(at, max(size, 1.15 * reach), shake, True))
    if random.random() < 0.6:  # a patch on the border
        border = np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=1))
        at = (border if len(border) else voxels)[int(random.integers(len(border) or len(voxels)))] * spacing
        looks.append(look(at, length * np.exp(random.uniform(np.log(0.2), np.log(0.9))), 0.2, False))
    return Case(marks, looks, float(len(voxels) * spacing.prod()), length, spacing)


def _structure(random: Random, drawn: Scene, taken: Acquisition) -> Bools | None:
    """A structure with a visible border, on the image's voxels: a component of a label, or a whole organ."""
    labels = drawn.labels[taken.region]
    shape = np.array(labels.shape)
    sizes = np.bincount(labels.ravel(), minlength=len(drawn.tissues))
    for _ in range(20):
        if random.random() < 0.65:  # each structure alike, however small
            present = [label for label in np.flatnonzero(sizes >= 40) if label not in drawn.air]
            if not present:
                return None
            label = int(random.choice(present))
            places = np.argwhere(labels == label)
            at = places[int(random.integers(len(places)))]
        else:
            at = random.integers(shape)
            label = int(labels[tuple(at)])
        if label in drawn.air and random.random() < 0.9:
            continue
        chosen = {label}
        wholes = [whole for whole in drawn.wholes if label in whole]
        if wholes and random.random() < 0.45:
            chosen = set(wholes[int(random.integers(len(wholes)))])
        full = np.isin(drawn.labels, list(chosen))
        parts, _ = ndimage.label(full[taken.region])
        part = parts == parts[tuple(at)]
        if random.random() < 0.12:
            part = ndimage.binary_fill_holes(part)
        if part.sum() < 40 or part.mean() > 0.5 or (part.mean() > 0.1 and random.random() < 0.6):
            continue
        if random.random() < min(0.8, 0.2 * sides(part)) or not _visible(random, labels, part, taken):
            continue
        share = np.zeros(drawn.labels.shape, bool)
        share[taken.region] = part
        mask = taken.on_image(share)
        if mask.sum() >= 12:
            return mask
    return None


def _slice(random: Random, source: Source, mask: Bools) -> tuple[Source, Bools]:
    """A slice of an image, across its thickest axis or any other, and the largest component of a structure on it."""
    thickest = int(source.spacing.argmax())
    axis = thickest if source.spacing[thickest] > source.spacing.min() else int(random.integers(3))
    areas = mask.sum(tuple(other for other in range(3) if other != axis))
    at = int(random.choice(np.flatnonzero(areas >= areas.max() / 2)))
    parts, _ = ndimage.label(mask.take([at], axis))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return Source(source.array.take([at], axis), source.spacing), parts == sizes.argmax()


def _visible(random: Random, labels: NDArray[np.int16], part: Bools, taken: Acquisition) -> bool:
    """True if most of the structure's border is visible; sometimes also if it is not."""
    sides = ndimage.find_objects(part.astype(np.uint8))[0]
    region = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in sides)
    mask, around = part[region], labels[region]
    ring = ndimage.binary_dilation(mask) & ~mask
    if not ring.any():
        return False
    counts = np.bincount(around[mask], minlength=len(taken.means))
    inner = taken.means[np.flatnonzero(counts > 0.2 * counts.sum())]
    outer = taken.means[around[ring]]
    contrast = np.abs(outer[:, None] - inner[None]).min(1)
    return bool((contrast > 0.6 * taken.noise).mean() > 0.6) or random.random() < 0.12
