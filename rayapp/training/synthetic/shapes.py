"""Random shapes on a cubic canvas, as fields: a shape is the region where its field is below 1.

Lengths are in voxels of the canvas. The grid on which fields are drawn may be warped, see `warped`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Random = np.random.Generator


def smooth(random: Random, shape: Sequence[int], cells: int) -> Floats:
    """A smooth random field: normally distributed numbers at `cells` points along each axis, interpolated."""
    coarse = torch.from_numpy(random.standard_normal((1, 1, cells, cells, cells), dtype=np.float32))
    fine = functional.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)
    return np.asarray(fine[0, 0].numpy())


def grid(edge: int) -> Floats:
    """The canvas's coordinates (3, edge, edge, edge)."""
    line = np.arange(edge, dtype=np.float32)
    return np.stack(np.meshgrid(line, line, line, indexing="ij"))


def warped(random: Random, edge: int) -> Floats:
    """Coordinates bent by a smooth random displacement of up to about a tenth of the canvas."""
    cells = int(random.integers(3, 7))
    bend = np.float32(edge * random.uniform(0, 0.08))
    return grid(edge) + bend * np.stack([smooth(random, (edge,) * 3, cells) for _ in range(3)])


def rotation(random: Random) -> Floats:
    """A random rotation, or reflection, (3, 3)."""
    return np.linalg.qr(random.standard_normal((3, 3)))[0].astype(np.float32)


def radial(
    random: Random, at: Floats, centre: NDArray[np.float64], axes: NDArray[np.float64], *, turned: bool = True
) -> Floats:
    """The radial field of a superellipsoid around `centre` with half-axes `axes`; its form is between a diamond and a
    box.
    """
    turn = rotation(random) if turned else np.eye(3, dtype=np.float32)
    offset = at - centre[:, None, None, None].astype(np.float32)
    local = np.abs(np.tensordot(turn, offset, 1)) / axes[:, None, None, None].astype(np.float32)
    power = np.float32(random.choice([2.0, 2.0, 2.0, 1.3, 3.0, 5.0]))
    if power == 2:
        return np.asarray(np.sqrt((local * local).sum(0)), np.float32)
    return np.asarray((local**power).sum(0) ** (1 / power), np.float32)


def blob(random: Random, at: Floats, centre: NDArray[np.float64], size: float) -> Floats:
    """A smooth lump with a radius of about `size`, round to elongated, with a bumpy surface."""
    axes = size * np.exp(random.uniform(-0.55, 0.55, 3))
    field = radial(random, at, centre, axes)
    bumps = np.float32(random.uniform(0, 0.3))
    return field + bumps * smooth(random, at.shape[1:], int(random.integers(4, 14)))


def lobed(random: Random, at: Floats, centre: NDArray[np.float64], size: float) -> Floats:
    """Two to five merging lumps, like a stomach, a bean or a cluster."""
    field: Floats | None = None
    for _ in range(int(random.integers(2, 6))):
        place = centre + random.normal(0, 0.6 * size, 3)
        lump = blob(random, at, place, size * random.uniform(0.4, 0.9))
        field = lump if field is None else np.minimum(field, lump)
    assert field is not None
    return field


def folded(random: Random, at: Floats, centre: NDArray[np.float64], size: float) -> Floats:
    """A lump with a folded surface, like a cortex or a bowel wall."""
    field = blob(random, at, centre, size)
    waves = smooth(random, at.shape[1:], int(random.integers(5, 10))) * np.float32(random.uniform(2, 6))
    depth = np.float32(random.uniform(0.08, 0.25))
    return np.asarray(field + depth * np.sin(waves + field * np.float32(random.uniform(0, 6))), np.float32)


def bar(random: Random, at: Floats, centre: NDArray[np.float64], size: float) -> Floats:
    """A long or flat bent body, like a muscle, a bone or a plate."""
    axes = size * np.array([1.0, *np.exp(random.uniform(-2.0, -0.5, 2))])
    field = radial(random, at, centre, axes)
    return field + np.float32(random.uniform(0, 0.2)) * smooth(random, at.shape[1:], int(random.integers(4, 12)))


def path(random: Random, start: NDArray[np.float64], steps: int, *, bend: float = 0.15) -> NDArray[np.float64]:
    """A smooth random walk (steps, 3) with steps of about one voxel."""
    direction = random.standard_normal(3)
    direction /= np.linalg.norm(direction)
    turn = random.standard_normal(3) * bend
    points = [start]
    for _ in range(steps - 1):
        turn = 0.9 * turn + random.standard_normal(3) * bend * 0.4
        direction = direction + turn * 0.35
        direction /= np.linalg.norm(direction)
        points.append(points[-1] + direction)
    return np.array(points)


def tree(random: Random, edge: int, start: NDArray[np.float64], radius: float, branches: int) -> Floats:
    """A tube, or a tree of tubes that become thinner with each branch: a vessel, an airway, a bowel, a duct."""
    mask = np.full((edge,) * 3, 9.0, np.float32)
    line = path(random, start, int(random.uniform(0.5, 1.6) * edge), bend=random.uniform(0.05, 0.35))
    stack = [(line, radius, branches)]
    while stack:
        line, thick, left = stack.pop()
        taper = random.uniform(0.5, 1.0) if left else 1.0
        width = thick * np.linspace(1, taper, len(line)) * (1 + 0.15 * np.sin(np.arange(len(line)) * 0.3))
        for place, r in zip(line[:: max(1, int(thick / 2))], width[:: max(1, int(thick / 2))], strict=True):
            stamp(mask, place, max(r, 0.7))
        for _ in range(left):
            begin = line[int(random.integers(len(line)))]
            length = max(6, int(len(line) * random.uniform(0.3, 0.7)))
            stack.append((path(random, begin, length), max(0.7, thick * random.uniform(0.4, 0.8)), left - 1))
    return mask


def stamp(field: Floats, place: NDArray[np.float64], radius: float) -> None:
    """Lower a field to that of a ball: distance over radius, below 1 inside."""
    low = np.maximum(0, np.floor(place - radius - 1).astype(int))
    high = np.minimum(field.shape, np.ceil(place + radius + 2).astype(int))
    if (low >= high).any():
        return
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = np.ogrid[region]
    squares = sum(((axis - centre) / radius) ** 2 for axis, centre in zip(axes, place, strict=True))
    np.minimum(field[region], np.sqrt(squares), out=field[region], casting="same_kind")


def cells(random: Random, at: Floats, inside: Bools, count: int) -> NDArray[np.int16]:
    """Divide `inside` into touching cells, numbered 0 to count - 1, like lobes, gyri or nuclei; -1 elsewhere."""
    places = np.argwhere(inside)
    parts = np.full(inside.shape, -1, np.int16)
    if not len(places):
        return parts
    seeds = places[random.integers(len(places), size=count)].astype(np.float32)
    points = at[:, inside].T
    nearest = ((points[:, None] - seeds[None]) ** 2).sum(2) * np.exp(random.normal(0, 0.3, count)).astype(np.float32)
    parts[inside] = nearest.argmin(1).astype(np.int16)
    return parts


def sides(part: Bools) -> int:
    """Number of the image's faces that a structure reaches; it is small for structures in patients."""
    return sum(bool(part.take(end, axis).any()) for axis in range(3) for end in (0, -1))
