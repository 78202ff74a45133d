"""Random scenes: label maps whose structures touch, contain, repeat and intersect each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rayapp.training.synthetic import shapes
from rayapp.training.synthetic.shapes import Bools, Floats, Random

Labels = NDArray[np.int16]
Tissue = Literal["air", "gas", "lung", "fat", "fluid", "soft", "vessel", "marrow", "bone"]
"""Kind of a tissue, if it determines how a scanner shows it."""


@dataclass
class Scene:
    """A label map on a cubic canvas.

    Attributes:
        labels: (edge, edge, edge), 0 to `len(tissues)` - 1.
        tissues: the tissue of each label; labels with the same tissue look alike.
        wholes: groups of labels that form one organ, such as a wall and its contents.
        air: labels of air, or of nothing.
        kinds: kinds of some tissues; the others may be anything.
    """

    labels: Labels
    tissues: list[int] = field(default_factory=list)
    wholes: list[frozenset[int]] = field(default_factory=list)
    air: set[int] = field(default_factory=set)
    kinds: dict[int, Tissue] = field(default_factory=dict)

    def add(
        self,
        where: Bools,
        region: tuple[slice, ...] | None = None,
        tissue: int | None = None,
        *,
        kind: Tissue | None = None,
    ) -> int:
        """Paint a new label, by default with a new tissue. Returns the label."""
        label = len(self.tissues)
        self.tissues.append(1 + max(self.tissues, default=-1) if tissue is None else tissue)
        if kind is not None:
            self.kinds[self.tissues[-1]] = kind
        target = self.labels if region is None else self.labels[region]
        target[where] = label
        return label


def scene(random: Random, edge: int = 96) -> Scene:
    """A scene: a background of several tissues, or a body in air, with 5 to 21 structures."""
    made = Scene(np.zeros((edge,) * 3, np.int16))
    at = shapes.warped(random, edge)
    kind = random.random()
    if kind < 0.35:
        _tissues(random, made)
    elif kind < 0.75:
        _body(random, made, at)
    else:
        made.add(np.ones((edge,) * 3, bool))
    for _ in range(int(random.integers(5, 11) if kind >= 0.75 else random.integers(7, 22))):
        size = edge * np.exp(random.uniform(np.log(0.03), np.log(0.34)))
        centre = random.uniform(-0.05, 1.05, 3) * edge
        _structure(random, made, at, centre, size)
    if kind < 0.75 and random.random() < 0.25:
        _cut(random, made)
    return made


def _tissues(random: Random, made: Scene) -> None:
    shape = made.labels.shape
    count, cells = int(random.integers(3, 8)), int(random.integers(3, 12))
    best = shapes.smooth(random, shape, cells)
    made.add(np.ones(shape, bool))
    for _ in range(count - 1):
        field_ = shapes.smooth(random, shape, cells) + np.float32(random.normal(0, 0.3))
        over = field_ > best
        np.maximum(best, field_, out=best)
        made.add(over)


def _body(random: Random, made: Scene, at: Floats) -> None:
    """Paint a body in air: a skin of fat and muscle, and its inside."""
    edge = made.labels.shape[0]
    centre = edge * random.uniform(0.35, 0.65, 3)
    axes = edge * random.uniform(0.4, 0.75, 3)
    axes[int(random.integers(3))] *= random.choice([1.0, 4.0])
    field_ = shapes.radial(random, at, centre, axes, turned=False)
    field_ += np.float32(random.uniform(0, 0.08)) * shapes.smooth(random, made.labels.shape, 6)
    made.air.add(made.add(field_ >= 1))
    level = 1.0
    for _ in range(int(random.integers(1, 4))):
        made.add(field_ < level)
        level -= random.uniform(0.03, 0.14)
    if random.random() < 0.5:
        inner = shapes.smooth(random, made.labels.shape, int(random.integers(3, 9)))
        made.add((field_ < level) & (inner > random.uniform(-0.3, 0.8)))


def _cut(random: Random, made: Scene) -> None:
    """Clear everything outside a cylinder, like a scanner's field of view."""
    edge = made.labels.shape[0]
    axis = int(random.integers(3))
    plane = [other for other in range(3) if other != axis]
    radius = np.sqrt(sum((shapes.grid(edge)[other] - edge / 2) ** 2 for other in plane))
    made.air.add(made.add(radius > edge * random.uniform(0.42, 0.6)))


def _structure(random: Random, made: Scene, at: Floats, centre: NDArray[np.float64], size: float) -> None:
    """Paint one structure, or several that belong together."""
    edge = made.labels.shape[0]
    draw = random.random()
    if draw < 0.14:
        _tree(random, made, size)
        return
    if draw < 0.21:
        _chain(random, made, size)
        return
    reach = size * 2.4 + 2
    low = np.clip(np.floor(centre - reach), 0, edge - 6).astype(int)
    high = np.clip(np.ceil(centre + reach), low + 6, edge).astype(int)
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    local = at[(slice(None), *region)]
    form = [shapes.blob, shapes.lobed, shapes.folded, shapes.bar][int(random.choice(4, p=[0.45, 0.2, 0.15, 0.2]))]
    field_ = form(random, local, centre, size)
    inside = field_ < 1
    if inside.sum() < 30:
        return
    if draw < 0.40:
        _shell(random, made, field_, local, region, size)
    elif draw < 0.46:
        parts, level = set(), 1.0
        tissues = [int(random.integers(0, 3)) + max(made.tissues) + 1 for _ in range(2)]
        for layer in range(int(random.integers(3, 6))):
            parts.add(made.add(field_ < level, region, tissues[layer % 2] if random.random() < 0.5 else None))
            level -= random.uniform(0.06, 0.25)
        made.wholes.append(frozenset(parts))
    elif draw < 0.56:
        cells = shapes.cells(random, local, inside, int(random.integers(2, 8)))
        alike = random.random() < 0.4
        first = made.add(cells == 0, region)
        parts = {first}
        for cell in range(1, int(cells.max()) + 1):
            parts.add(made.add(cells == cell, region, made.tissues[first] if alike else None))
        made.wholes.append(frozenset(parts))
    else:
        label = made.add(inside, region)
        if random.random() < 0.35:
            _contents(random, made, field_, region, label)
        if random.random() < 0.18:
            _twin(random, made, region, inside, label)


def _shell(random: Random, made: Scene, field_: Floats, at: Floats, region: tuple[slice, ...], size: float) -> None:
    """Paint a wall around a structure, thin to thick, often open on one side like a cup."""
    thickness = np.exp(random.uniform(np.log(0.08), np.log(0.6)))
    thickness = max(thickness, 1.3 / size)
    wall = made.add(field_ < 1, region)
    uneven = 1 + np.float32(random.uniform(0, 0.5)) * shapes.smooth(random, field_.shape, 5)
    content = made.add(field_ < 1 - np.float32(thickness) * np.maximum(uneven, 0.3), region)
    made.wholes.append(frozenset({wall, content}))
    if random.random() < 0.5:
        direction = random.standard_normal(3)
        direction /= np.linalg.norm(direction)
        along = np.tensordot(direction.astype(np.float32), at, 1)
        inside = field_ < 1
        threshold = np.quantile(along[inside][::7], random.uniform(0.55, 0.95))
        beyond = inside & (along > threshold)
        if random.random() < 0.5:
            made.add(beyond, region)
        else:
            made.add(beyond, region, made.tissues[content])


def _contents(random: Random, made: Scene, field_: Floats, region: tuple[slice, ...], label: int) -> None:
    """Paint lumps or holes inside an organ: lesions, calyces, vessels. They count as parts of the organ."""
    places = np.argwhere(field_ < 0.75)
    if not len(places):
        return
    parts = {label}
    shape = field_.shape
    span = max(shape) * 0.4
    tissue = None
    for _ in range(int(random.integers(1, 6))):
        at = places[int(random.integers(len(places)))].astype(float)
        lump = np.full(shape, 9.0, np.float32)
        shapes.stamp(lump, at, max(1.5, span * np.exp(random.uniform(np.log(0.06), np.log(0.4)))))
        lump += np.float32(random.uniform(0, 0.3)) * shapes.smooth(random, shape, 6)
        part = made.add((lump < 1) & (field_ < 1), region, tissue)
        tissue = made.tissues[part] if random.random() < 0.7 else None
        parts.add(part)
    made.wholes.append(frozenset(parts))


def _twin(random: Random, made: Scene, region: tuple[slice, ...], inside: Bools, label: int) -> None:
    """Paint the mirrored structure on the other side, like the second kidney."""
    axis = int(random.integers(3))
    mirrored = np.zeros(made.labels.shape, bool)
    mirrored[region] = inside
    mirrored = np.roll(np.flip(mirrored, axis), int(random.integers(-6, 7)), (axis + 1) % 3)
    made.add(mirrored & (made.labels != label), None, made.tissues[label])


def _tree(random: Random, made: Scene, size: float) -> None:
    edge = made.labels.shape[0]
    radius = np.clip(size * 0.3, 1.0, 9.0)
    branches = int(random.choice([0, 0, 1, 2, 3]))
    field_ = shapes.tree(random, edge, random.uniform(0, edge, 3), float(radius), branches)
    field_ += np.float32(random.uniform(0, 0.2)) * shapes.smooth(random, field_.shape, 12)
    inside = field_ < 1
    if inside.sum() < 30:
        return
    label = made.add(inside)
    if radius > 3 and random.random() < 0.4:
        lumen = made.add(field_ < random.uniform(0.5, 0.85))
        made.wholes.append(frozenset({label, lumen}))


def _chain(random: Random, made: Scene, size: float) -> None:
    """Paint a row of bodies with the same tissue that touch or nearly do: vertebrae, ribs, teeth, bowel loops."""
    edge = made.labels.shape[0]
    radius = np.clip(size * 0.5, 2.0, 12.0)
    pitch = radius * random.uniform(1.5, 2.6)
    line = shapes.path(random, random.uniform(0.1, 0.9, 3) * edge, int(edge * 1.2), bend=0.06)
    tissue: int | None = None
    squeeze = np.exp(random.uniform(-0.4, 0.4, 3))
    for place in line[:: max(2, int(pitch))]:
        reach = radius * 2.2 + 2
        low = np.clip(np.floor(place - reach), 0, edge - 4).astype(int)
        high = np.clip(np.ceil(place + reach), low + 4, edge).astype(int)
        region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[region]
        squares = sum(((x - c) / (radius * q)) ** 2 for x, c, q in zip(axes, place, squeeze, strict=True))
        field_ = np.sqrt(squares).astype(np.float32)
        field_ += np.float32(0.15) * shapes.smooth(random, field_.shape, 5)
        if (field_ < 1).sum() >= 20:
            tissue = made.tissues[made.add(field_ < 1, region, tissue)]
