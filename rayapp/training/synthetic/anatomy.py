"""Scenes with the layout of bodies: a torso, a head or a limb, with organs in their places, varied in size and form.

They provide context, which other scenes lack: the size of an organ relative to the body, its neighbours, and the
tissues that a scan shows together. Positions are in a frame of the body: x from one side to the other, y from front to
back, z along the body, from -1 to 1 between opposite sides of the skin. The body's orientation in the image is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayapp.training.synthetic import shapes
from rayapp.training.synthetic.scenes import Scene, Tissue
from rayapp.training.synthetic.shapes import Bools, Floats, Random

Place = Sequence[float] | NDArray[np.float64]


class Body:
    """A scene in which a body is drawn.

    Args:
        random: source of randomness.
        made: the scene.
        scale: share of the body that the canvas shows; 1 is its width.
    """

    def __init__(self, random: Random, made: Scene, scale: float) -> None:
        self.random, self.made = random, made
        edge = made.labels.shape[0]
        order = random.permutation(3)
        signs = random.choice([-1, 1], 3)[:, None, None, None]
        centre = random.normal(0, 0.12, 3)[:, None, None, None]
        lain = shapes.warped(random, edge)[order] / np.float32(edge) * 2 - 1
        self.at = (lain * signs * np.float32(scale) + centre).astype(np.float32)
        self._tissues: dict[str, int] = {}

    def ellipsoid(self, centre: Place, axes: Place, bumps: float = 0.1) -> Floats:
        """The field of an ellipsoid with half-axes `axes`, which are varied by a third, at a slightly random
        position.
        """
        random = self.random
        place = np.array(centre) + random.normal(0, 0.03, 3)
        size = np.array(axes) * np.exp(random.normal(0, 0.15) + random.normal(0, 0.12, 3))
        field = shapes.radial(random, self.at, place, size, turned=False)
        return field + np.float32(random.uniform(0.3, 1) * bumps) * self.uneven(int(random.integers(5, 12)))

    def tube(self, place: tuple[float, float], radius: float, along: int = 2) -> Floats:
        """The field of a winding tube along an axis, approximately at `place` on the other two axes."""
        first, second = (axis for axis in range(3) if axis != along)
        bend = self.random.normal(0, 0.05, (2, 6)).cumsum(1)
        t = self.at[along]
        steps = np.linspace(-2, 2, 6)
        u, v = (c + np.interp(t, steps, b).astype(np.float32) for c, b in zip(place, bend, strict=True))
        return np.asarray(np.hypot(self.at[first] - u, self.at[second] - v) / np.float32(radius), np.float32)

    def uneven(self, cells: int) -> Floats:
        """A smooth random field on the canvas."""
        return shapes.smooth(self.random, self.made.labels.shape, cells)

    def paint(self, where: Bools, tissue: Tissue, alike: str | None = None) -> int | None:
        """Paint a structure with a kind of tissue, which structures with the same `alike` share. None if too little of
        it is visible.
        """
        if where.sum() < 12:
            return None
        known = self._tissues.get(alike) if alike else None
        label = self.made.add(where, None, known, kind=tissue)
        if alike:
            self._tissues[alike] = self.made.tissues[label]
        return label

    def organ(self, *labels: int | None) -> None:
        """Record that structures are parts of one organ."""
        parts = frozenset(label for label in labels if label is not None)
        if len(parts) > 1:
            self.made.wholes.append(parts)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.random.random() < probability)

    def either(self, first: Tissue, second: Tissue) -> Tissue:
        """One of two kinds of tissue, at random."""
        return first if self.chance(0.5) else second


def anatomy(random: Random, edge: int | None = None) -> Scene:
    """A torso, a head or a limb on a canvas of `edge` voxels, by default 80 to 120."""
    made = Scene(np.zeros((edge or int(random.integers(80, 121)),) * 3, np.int16))
    kind = random.random()
    if kind < 0.65:
        _torso(Body(random, made, float(np.exp(random.uniform(np.log(0.55), np.log(1.25))))))
    elif kind < 0.85:
        _head(Body(random, made, float(np.exp(random.uniform(np.log(0.4), np.log(1.2))))))
    else:
        _limb(Body(random, made, float(np.exp(random.uniform(np.log(0.7), np.log(1.3))))))
    return made


def _torso(body: Body) -> None:
    random, (x, y, z) = body.random, body.at
    depth = random.uniform(0.55, 0.8)
    body.at[1] /= np.float32(depth)  # y is 1 at the skin too
    skin = (np.hypot(x, y) + np.float32(0.03) * body.uneven(5)).astype(np.float32)
    outside = body.paint(skin < 9, "air")
    if outside is not None:
        body.made.air.add(outside)
    fat = random.uniform(0.03, 0.18)
    wall = fat + random.uniform(0.04, 0.12)
    body.paint(skin < 1, "fat", "fat")
    body.paint(skin < 1 - fat, "soft", "muscle")
    cavity = skin < 1 - wall
    body.paint(cavity, "fat", "fat" if body.chance(0.7) else None)
    _backbone(body)
    _ribs(body, skin, 1 - (fat + wall) / 2)
    chest = z > np.float32(random.uniform(0.1, 1.0)) + np.float32(0.25) * (x**2 + y**2) * random.uniform(-1, 0.2)
    _abdomen(body, cavity & ~chest)
    _chest(body, cavity & chest & (y < 0.45))
    _great_vessels(body)


def _backbone(body: Body) -> None:
    random, (x, y, z) = body.random, body.at
    back = random.uniform(0.45, 0.6)
    pitch = random.uniform(0.16, 0.3)
    phase = (z / np.float32(pitch) + random.uniform(0, 1)) % 1 - 0.5
    width = random.uniform(0.11, 0.17)
    centre = np.float32(back) + np.float32(random.uniform(-0.1, 0.1)) * z**2
    ring = np.hypot(x / np.float32(width), (y - centre) / np.float32(width * 0.95))
    for side in (-1, 1):  # muscles along it
        beside = body.ellipsoid((side * width * 2, back + 0.22, 0), (width * 1.3, 0.16, 4))
        body.paint(beside < 1, "soft", "muscle" if body.chance(0.5) else "back")
        front = body.ellipsoid((side * width * 1.9, back - 0.02, -0.5), (width * 0.8, 0.13, 0.9))
        body.paint(front < 1, "soft", "muscle" if body.chance(0.5) else "psoas")
    process = (np.abs(x) < 0.03) & (y > centre) & (y < centre + 0.38) & (np.abs(phase) < 0.25)
    arch = (np.hypot(x / np.float32(0.8 * width), (y - centre - width * 1.5) / np.float32(0.6 * width)) < 1) & (
        np.abs(phase) < 0.35
    )
    shell = body.paint((ring < 1) & (np.abs(phase) < 0.43) | process | arch, "bone", "bone")
    inner = body.paint((ring < 0.82) & (np.abs(phase) < 0.37), "marrow", "marrow")
    body.paint((ring < 0.95) & (np.abs(phase) >= 0.43), "soft", "disc")
    body.organ(shell, inner)
    canal = np.hypot(x, y - centre - width * 1.35) / np.float32(width * random.uniform(0.4, 0.6))
    sac = body.paint(canal < 1, "fluid", "liquor")
    body.organ(sac, body.paint(canal < random.uniform(0.45, 0.7), "soft", "cord"))


def _ribs(body: Body, skin: Floats, level: float) -> None:
    random, (x, y, z) = body.random, body.at
    pitch = random.uniform(0.16, 0.3)
    lean = random.uniform(0.1, 0.5)
    phase = (((z + np.float32(lean) * y) / np.float32(pitch)) % 1 - 0.5) * np.float32(pitch)
    across = np.hypot(phase / np.float32(pitch * random.uniform(0.2, 0.35)), (skin - level) / np.float32(0.035))
    lowest = random.uniform(-1.2, 0.8)
    cage = (across < 1) & (z > lowest) & ((np.abs(x) > 0.15) | (y > 0))
    gristle = cage & (y < -random.uniform(0.2, 0.6))
    body.paint(cage, "bone", "bone")
    body.paint(gristle, "soft", "gristle")


def _chest(body: Body, cavity: Bools) -> None:
    random, (x, _, z) = body.random, body.at
    middle = np.float32(random.uniform(0.1, 0.25)) + np.float32(0.08) * body.uneven(5)
    for side in (-1, 1):
        lung = cavity & (x * side > middle)
        parts = [body.paint(lung, "lung", "lung")]
        if body.chance(0.5):  # lobes, parted by a fissure
            slope = random.normal(0, 0.6, 2)
            beyond = z + slope[0] * x + slope[1] * body.at[1] > random.uniform(0.2, 0.9)
            lobe = body.paint(lung & beyond, "lung", "lung")
            fissure = np.abs(z + slope[0] * x + slope[1] * body.at[1] - random.uniform(0.2, 0.9)) < 0.015
            parts += [lobe, body.paint(lung & fissure, "soft", "vessels")]
        edge = x.shape[0]
        thin = shapes.tree(random, edge, random.uniform(0.3, 0.7, 3) * edge, random.uniform(1, 2.5), 3)
        parts.append(body.paint(lung & (thin < 1), "vessel", "vessels"))
        if body.chance(0.3):
            nodule = body.ellipsoid((side * 0.5, random.uniform(-0.3, 0.3), random.uniform(0.3, 1)), (0.07,) * 3)
            parts.append(body.paint(lung & (nodule < 1), "soft"))
        body.organ(*parts)
    _heart(body, (random.uniform(-0.25, 0.05), -0.2, random.uniform(0.5, 1.1)), random.uniform(0.26, 0.4))
    windpipe = body.tube((0, 0.1), random.uniform(0.05, 0.08))
    pipe = (z > 0.5) & (windpipe < 1)
    body.organ(body.paint(pipe, "soft"), body.paint(pipe & (windpipe < 0.75), "gas"))


def _heart(body: Body, place: Place, size: float) -> None:
    """Paint four chambers, two of them with a thick wall."""
    random = body.random
    whole = body.ellipsoid(place, (size, size * 0.9, size))
    body.paint(whole < 1, "soft", "heart")
    alike = "blood" if body.chance(0.6) else None
    tilt = random.normal(0, 0.15, 3)
    for number, (dx, dy, dz) in enumerate(
        ((0.35, 0.1, -0.25), (-0.35, -0.25, -0.2), (0.15, 0.4, 0.4), (-0.4, 0.1, 0.4))
    ):
        centre = np.array(place) + size * (np.array([dx, dy, dz]) + tilt)
        chamber = body.ellipsoid(centre, (size * 0.42, size * 0.4, size * (0.55 if number < 2 else 0.38)), 0.15)
        wall = body.paint(chamber < 1, "soft", "heart") if number < 2 else None
        body.organ(wall, body.paint(chamber < (random.uniform(0.55, 0.85) if number == 0 else 0.9), "vessel", alike))


def _abdomen(body: Body, cavity: Bools) -> None:
    random, (x, y, _) = body.random, body.at
    high = random.uniform(-0.1, 0.4)
    for _ in range(int(random.integers(2, 7))):  # bowel
        centre = (random.uniform(-0.55, 0.55), random.uniform(-0.65, 0.2), high - random.uniform(0.4, 1.6))
        _bowel(body, cavity, body.ellipsoid(centre, np.exp(random.normal(-2.0, 0.35, 3)), 0.4))
    if body.chance(0.7):
        along = int(random.choice([0, 2]))
        u, v = random.uniform(-0.7, 0.7), random.uniform(-0.7, 0)
        field = body.tube((u, v), random.uniform(0.07, 0.16), along)
        _bowel(body, cavity, field + np.float32(0.2) * body.uneven(14))
    liver = np.minimum(
        body.ellipsoid((-0.42, -0.02, high - 0.05), (0.42, 0.6, 0.45)),
        body.ellipsoid((-0.02, -0.42, high), (0.42, 0.26, 0.28)),
    )
    _filled(body, cavity & (liver < 1), "vessel", "liver")
    _filled(body, cavity & (body.ellipsoid((0.66, 0.22, high), (0.17, 0.32, 0.3)) < 1), "vessel", "spleen")
    stomach = body.ellipsoid((0.32, -0.3, high), (0.28, 0.28, 0.25), 0.35)
    _bowel(body, cavity, stomach)
    for side in (-1, 1):
        _kidney(body, cavity, body.ellipsoid((side * 0.42, 0.36, high - 0.4), (0.15, 0.19, 0.3), 0.08), side)
    if body.chance(0.7):
        gall = body.ellipsoid((-0.3, -0.35, high - 0.3), (0.09, 0.12, 0.14))
        body.paint(cavity & (gall < 1), "fluid")
    pancreas = body.ellipsoid((0.12, 0.0, high - 0.25), (0.34, 0.09, 0.09), 0.35)
    body.paint(cavity & (pancreas < 1), "soft")
    if body.chance(0.5):
        bladder = body.ellipsoid((0, -0.3, high - 1.4), (0.3, 0.3, 0.25), 0.1)
        wall = body.paint(cavity & (bladder < 1), "soft")
        body.organ(wall, body.paint(cavity & (bladder < random.uniform(0.8, 0.95)), "fluid"))
    hip = np.hypot(np.hypot(np.abs(x) - 0.55, y - 0.1), body.at[2] - high + 1.5)
    shell = body.paint(np.abs(hip - 0.3) < 0.09, "bone", "bone")
    body.organ(shell, body.paint(np.abs(hip - 0.3) < 0.06, "marrow", "marrow"))


def _filled(body: Body, where: Bools, inner: Tissue, alike: str) -> None:
    """Paint a solid organ, sometimes with vessels or lesions in it."""
    random = body.random
    parts = [body.paint(where, "soft", alike)]
    edge = where.shape[0]
    if parts[0] is None:
        return
    if body.chance(0.5):
        places = np.argwhere(where)
        start = places[int(random.integers(len(places)))].astype(float)
        vessels = shapes.tree(random, edge, start, random.uniform(0.8, 2.5), 2)
        parts.append(body.paint(where & (vessels < 1), inner, "vessels"))
    if body.chance(0.35):
        blots = body.uneven(int(random.integers(8, 18)))
        parts.append(body.paint(where & (blots > random.uniform(1.2, 2)), body.either("soft", "fluid")))
    body.organ(*parts)


def _kidney(body: Body, cavity: Bools, field: Floats, side: int) -> None:
    """Paint a kidney: cortex, pyramids, and fat and urine in the middle, open towards the spine."""
    random = body.random
    cortex = body.paint(cavity & (field < 1), "soft", "cortex")
    parts = [cortex]
    if body.chance(0.6):
        pyramids = (field < random.uniform(0.7, 0.85)) & (body.uneven(14) > -0.3)
        parts.append(body.paint(cavity & pyramids, "soft", "pyramids"))
    body.organ(*parts)
    middle = (field < random.uniform(0.3, 0.5)) | (
        (field < 1) & (body.at[0] * side < 0.34) & (np.abs(body.at[2]) < 0.1)
    )
    sinus = body.paint(cavity & middle, "fat", "fat")
    if sinus is not None and body.chance(0.4):
        body.organ(*parts, sinus)
    if body.chance(0.4):
        body.paint(cavity & (field < 0.25), "fluid", "urine")


def _bowel(body: Body, cavity: Bools, field: Floats) -> None:
    """Paint a bowel: a wall with contents, which are gas above and fluid or food below, or a mixture."""
    random = body.random
    inside = cavity & (field < 1)
    wall = body.paint(inside, "soft", "bowel")
    hollow = inside & (field < random.uniform(0.6, 0.92))
    parts = [wall, body.paint(hollow, body.either("fluid", "soft"))]
    if body.chance(0.6):
        level = body.at[1] < random.normal(-0.2, 0.3) if body.chance(0.5) else body.uneven(12) > random.uniform(-0.5, 1)
        parts.append(body.paint(hollow & level, "gas", "gas"))
    body.organ(*parts)


def _great_vessels(body: Body) -> None:
    random = body.random
    alike = "blood" if body.chance(0.5) else None
    for side in (-1, 1):
        place, radius = side * random.uniform(0.06, 0.14), random.uniform(0.045, 0.08)
        field = body.tube((place, random.uniform(0.2, 0.32)), radius)
        wall = body.paint(field < 1, "soft") if body.chance(0.3) else None
        body.organ(wall, body.paint(field < (0.8 if wall is not None else 1), "vessel", alike))
    for _ in range(int(random.integers(0, 4))):
        u, v = random.uniform(-0.3, 0.3, 2)
        branch = body.tube((u, v), 0.035, 0)
        body.paint((branch < 1) & (np.abs(body.at[0]) < 0.45), "vessel", alike)


def _head(body: Body) -> None:
    random, (x, y, z) = body.random, body.at
    head = body.ellipsoid((0, 0, 0), (0.85, 1.0, 0.95), 0.03)
    outside = body.paint(head < 99, "air")
    if outside is not None:
        body.made.air.add(outside)
    level = 1.0
    body.paint(head < level, "fat", "fat")
    level -= random.uniform(0.03, 0.08)
    bone = body.paint(head < level, "bone", "bone")
    if body.chance(0.5):
        body.organ(bone, body.paint((head < level - 0.02) & (head > level - 0.05), "marrow", "marrow"))
    level -= random.uniform(0.05, 0.1)
    body.paint(head < level, "fluid", "liquor")
    level -= random.uniform(0.01, 0.05)
    folds = np.sin(body.uneven(9) * np.float32(5) + head * np.float32(random.uniform(2, 8)))
    brain = head + np.float32(random.uniform(0, 0.05)) * folds
    brain = np.where(np.abs(x) < 0.012, 9, brain)
    grey = body.paint((brain < level) & (z > -0.5), "soft", "grey")
    white = (brain + np.float32(0.06) * folds < level - random.uniform(0.06, 0.16)) & (z > -0.45)
    body.organ(grey, body.paint(white, "soft", "white"))
    for side in (-1, 1):
        horn = np.minimum(
            body.ellipsoid((side * 0.11, -0.1, 0.12), (0.06, 0.36, 0.1), 0.2),
            body.ellipsoid((side * 0.25, 0.28, -0.08), (0.06, 0.12, 0.2), 0.2),
        )
        for dx, dy, dz, *axes in (
            (0.13, 0.06, 0.0, 0.1, 0.17, 0.1),
            (0.26, -0.08, 0.0, 0.07, 0.2, 0.12),
            (0.2, -0.25, 0.04, 0.06, 0.13, 0.12),
            (0.32, 0.08, -0.24, 0.06, 0.22, 0.06),
            (0.32, -0.2, -0.26, 0.08, 0.09, 0.08),
        ):
            nucleus = body.ellipsoid((side * dx, dy, dz), axes, 0.25)
            label = body.paint(nucleus < 1, "soft", f"nucleus {dx}" if body.chance(0.8) else "grey")
            if body.chance(0.3):
                cut = y > dy + random.normal(0, 0.05)
                body.organ(label, body.paint((nucleus < 1) & cut, "soft"))
        body.paint(horn < 1, "fluid", "liquor")
        cerebellum = body.ellipsoid((side * 0.25, 0.5, -0.55), (0.3, 0.3, 0.22), 0.05)
        rows = np.sin(cerebellum * np.float32(random.uniform(10, 30)))
        lobe = body.paint(cerebellum < 1, "soft", "grey")
        body.organ(lobe, body.paint((cerebellum < 0.9) & (rows > 0), "soft", "white"))
        eye = body.ellipsoid((side * 0.33, -0.85, -0.35), (0.14, 0.14, 0.14), 0)
        body.paint(eye < 1.25, "fat", "fat")
        body.organ(body.paint(eye < 1, "soft"), body.paint(eye < 0.88, "fluid"))
    stem = body.tube((0, 0.15), random.uniform(0.11, 0.16))
    body.paint((stem < 1) & (z < -0.15), "soft", "white" if body.chance(0.5) else None)
    if body.chance(0.35):  # a tumour, its core and the swelling around
        lesion = body.ellipsoid((*random.uniform(-0.4, 0.4, 2), random.uniform(0, 0.5)), (0.17, 0.17, 0.17), 0.3)
        parts = [body.paint((lesion < 1.4) & white, "fluid"), body.paint(lesion < 1, "soft")]
        body.organ(*parts, body.paint(lesion < random.uniform(0.4, 0.8), "fluid"))


def _limb(body: Body) -> None:
    """Paint muscles around one or two bones, or a joint."""
    random, (x, y, z) = body.random, body.at
    skin = (np.hypot(x, y) + np.float32(0.04) * body.uneven(5)).astype(np.float32)
    outside = body.paint(skin < 99, "air")
    if outside is not None:
        body.made.air.add(outside)
    body.paint(skin < 0.95, "fat", "fat")
    muscles = skin < 0.95 - random.uniform(0.03, 0.2)
    cells = shapes.cells(random, body.at, muscles, int(random.integers(3, 10)))
    for cell in range(int(cells.max()) + 1):
        body.paint(cells == cell, "soft", "muscle" if body.chance(0.6) else None)
    seams = body.uneven(10)
    body.paint(muscles & (np.abs(seams) < 0.05), "fat", "fat")
    joint = random.normal(0, 0.3)
    for place in random.uniform(-0.4, 0.4, (int(random.integers(1, 3)), 2)):
        thick = random.uniform(0.14, 0.3)
        flare = 1 + np.float32(random.uniform(0, 1)) * np.exp(-(((z - joint) / np.float32(0.3)) ** 2))
        ring = np.hypot(x - place[0], y - place[1]) / (np.float32(thick) * flare)
        gap = np.abs(z - joint - np.float32(0.06) * body.uneven(4))
        bone = gap > 0.06
        body.paint((ring < 1.02) & ~bone, "soft", "cartilage")
        body.paint((ring < 0.9) & (gap < 0.015), "fluid", "joint")
        shell = body.paint((ring < 1) & bone, "bone", "bone")
        body.organ(shell, body.paint((ring < random.uniform(0.5, 0.9)) & (gap > 0.1), "marrow", "marrow"))
    for _ in range(int(random.integers(1, 5))):
        u, v = random.uniform(-0.6, 0.6, 2)
        vessel = body.tube((u, v), random.uniform(0.03, 0.07))
        body.paint(muscles & (vessel < 1), "vessel", "blood")
