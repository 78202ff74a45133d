"""Simulated prompts as people give them: off-centre, near borders, shaky, loose, on one slice or several; and
corrections.

A structure is a mask on an image's voxels; prompts are in mm along the image's axes, as in
`rayapp.inference.zoom.marks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.zoom.marks import Box, Lasso, Marks, Positions
from rayapp.training.synthetic.shapes import Bools, Floats, Random

Voxels = NDArray[np.int64]

KINDS = {
    "click": 0.37,
    "clicks": 0.06,
    "box": 0.20,
    "box and click": 0.08,
    "box on a slice": 0.06,
    "strokes": 0.13,
    "painted slices": 0.03,
    "lasso": 0.08,
    "ends": 0.03,
}
"""Relative frequency of each kind of first prompt."""
BOXES = ("box", "box and click", "ends")
FILLED = 0.3
"""Typical share of its box that a structure fills. Structures that fill less are boxed more often, those that fill more
less often; otherwise the network would learn to fill boxes, since most structures nearly do."""


def first(random: Random, mask: Bools, spacing: NDArray[np.float64]) -> Marks:
    """A simulated annotator's first prompts for a structure.

    Args:
        random: source of randomness.
        mask: the structure, (i, j, k), not empty.
        spacing: voxel spacing, mm.
    """
    low, high = _bounds(mask)
    likelier = np.clip(FILLED / (mask.sum() / (high - low + 1).prod()), 0.4, 3)
    weights = np.array([share * (likelier if kind in BOXES else 1) for kind, share in KINDS.items()])
    kind = random.choice(list(KINDS), p=weights / weights.sum())
    marks = Marks(pitch=float(spacing.min()))
    size = float(np.cbrt(mask.sum() * spacing.prod()))
    if kind in ("click", "clicks", "box and click"):
        for _ in range(1 if kind != "clicks" else int(random.integers(2, 5))):
            marks.include.append(click(random, mask, spacing))
    if kind in ("box", "box and click"):
        marks.boxes.append(box(random, mask, spacing))
    elif kind == "box on a slice":
        axis, at = _slice(random, mask)
        marks.boxes.append(_slice_box(random, mask, spacing, axis, at))
    elif kind == "ends":
        marks.boxes.append(box(random, mask, spacing, loose=False))
        voxels = np.argwhere(mask)
        for axis in range(3):
            for extreme in (voxels[:, axis].argmin(), voxels[:, axis].argmax()):
                marks.include.append(voxels[extreme] * spacing)
    elif kind == "lasso":
        axis, at = _slice(random, mask)
        marks.lassos += _lassos(random, mask, spacing, axis, at)
    elif kind == "painted slices":
        axis, _ = _slice(random, mask)
        _paint(random, marks, mask, spacing, axis)
    elif kind == "strokes":
        axis, at = _slice(random, mask)
        filled = np.flatnonzero(mask.any(tuple(b for b in range(3) if b != axis)))
        slices = {at, *random.choice(filled, size=int(random.integers(0, 3)))}
        rings = random.random() < 0.5
        for number in slices:
            _strokes(random, marks, mask, spacing, axis, int(number), size, rings)
    if marks.bounds() is None:  # nothing could be drawn on so little
        marks.include.append(click(random, mask, spacing))
    return marks


def click(random: Random, mask: Bools, spacing: NDArray[np.float64]) -> Positions:
    """A click on a mask, mostly away from its border: at its middle or anywhere else; (3), mm."""
    place, region = _depths(mask, spacing, _flat(mask))
    limit = place.max() * random.choice([0.99, random.uniform(0.2, 0.95), 0.05], p=[0.25, 0.65, 0.1])
    voxels = np.argwhere(place >= limit)
    at = voxels[int(random.integers(len(voxels)))] + [side.start for side in region]
    return np.asarray((at + random.uniform(-0.4, 0.4, 3)) * spacing)


def middle(mask: Bools, spacing: NDArray[np.float64]) -> Voxels:
    """The voxel (3) of a mask that is farthest from its border."""
    place, region = _depths(mask, spacing, _flat(mask))
    at = np.array(np.unravel_index(place.argmax(), place.shape))
    return np.asarray(at + [side.start for side in region])


def correction(
    random: Random | None, truth: Bools, answer: Bools, spacing: NDArray[np.float64]
) -> tuple[Voxels, bool] | None:
    """The next click: mostly in the largest error region, at its middle or at random deep inside.

    Args:
        random: source of randomness; None clicks at the middle.
        truth: the structure, (i, j, k).
        answer: the current mask, (i, j, k).
        spacing: voxel spacing, mm.

    Returns:
        The voxel, and True if it lies in the structure; None if there is no error.
    """
    wrong = truth ^ answer
    parts, count = ndimage.label(wrong)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    number = int(sizes.argmax())
    if random is not None and count > 1 and random.random() < 0.25:
        number = int(random.choice(count + 1, p=sizes / sizes.sum()))
    region = ndimage.find_objects(parts, max_label=number)[number - 1]
    part = parts[region] == number
    depth, inner = _depths(part, spacing, _flat(truth))
    if random is None or random.random() < 0.4:
        at = np.array(np.unravel_index(depth.argmax(), depth.shape))
    else:
        voxels = np.argwhere(depth >= depth.max() * random.uniform(0.2, 0.95))
        at = voxels[int(random.integers(len(voxels)))]
    at = at + [a.start + b.start for a, b in zip(region, inner, strict=True)]
    return at, bool(truth[tuple(at)])


def box(random: Random, mask: Bools, spacing: NDArray[np.float64], *, loose: bool = True) -> Box:
    """A box around a mask: tight, or slightly off on each side."""
    low, high = _bounds(mask)
    sides = []
    for axis in range(3):
        room = max(1.0, (high[axis] - low[axis]) * 0.12) if loose and random.random() < 0.5 else 0.3
        off = random.normal(0.25, 0.5, 2) * room
        a, b = low[axis] - 0.5 - off[0], high[axis] + 0.5 + off[1]
        sides.append((a, b) if b - a > 0.5 else (low[axis] - 0.5, high[axis] + 0.5))
    corners = np.array(sides).T * spacing
    return Box.of(corners[0], corners[1])


def _slice_box(random: Random, mask: Bools, spacing: NDArray[np.float64], axis: int, at: int) -> Box:
    flat = np.zeros_like(mask)
    chosen = (slice(None),) * axis + (at,)
    flat[chosen] = mask[chosen]
    around = box(random, flat, spacing)
    low, high = np.array(around.low), np.array(around.high)
    low[axis], high[axis] = (at - 0.5) * spacing[axis], (at + 0.5) * spacing[axis]
    return Box.of(low, high)


def _slice(random: Random, mask: Bools) -> tuple[int, int]:
    """An axis and a slice to draw on, mostly one where the structure is large, across the axis of thick slices."""
    fewest = int(np.argmin(mask.shape))
    axis = fewest if _flat(mask) or random.random() < 0.4 else int(random.integers(3))
    areas = mask.sum(tuple(b for b in range(3) if b != axis)).astype(float)
    weights = areas if random.random() < 0.5 else areas * (areas > 0.7 * areas.max())
    return axis, int(random.choice(len(areas), p=weights / weights.sum()))


def _lassos(random: Random, mask: Bools, spacing: NDArray[np.float64], axis: int, at: int) -> list[Lasso]:
    """A closed curve around the structure on a slice, shaky and mostly slightly too large; sometimes on three
    slices.
    """
    others = [b for b in range(3) if b != axis]
    drawn = []
    numbers = {at}
    if random.random() < 0.25:
        numbers |= {at - int(random.integers(1, 6)), at + int(random.integers(1, 6))}
    margin = random.uniform(0, 0.25)
    for number in sorted(numbers):
        if not 0 <= number < mask.shape[axis]:
            continue
        flat = np.take(mask, number, axis)
        if flat.sum() < 4:
            continue
        voxels = np.argwhere(flat) * spacing[others]
        centre = voxels.mean(0)
        offset = voxels - centre
        angles = np.arctan2(offset[:, 1], offset[:, 0])
        bins = np.linspace(-np.pi, np.pi, 33)
        index = np.clip(np.digitize(angles, bins) - 1, 0, 31)
        radii = np.zeros(32)
        np.maximum.at(radii, index, np.hypot(offset[:, 0], offset[:, 1]))
        radii = np.maximum(radii, radii.max() * 0.1)
        shaky = ndimage.gaussian_filter1d(random.standard_normal(32), 2, mode="wrap") * 0.15
        radii = radii * (1 + margin + shaky) + spacing[others].mean() * 0.6
        turn = (bins[:-1] + bins[1:]) / 2
        curve = centre + radii[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
        drawn.append(Lasso(axis, number * spacing[axis], float(spacing[axis]), curve))
    return drawn


def _paint(random: Random, marks: Marks, mask: Bools, spacing: NDArray[np.float64], axis: int) -> None:
    """Paint the structure on every slice or every few slices, or paint its outline."""
    filled = np.flatnonzero(mask.any(tuple(b for b in range(3) if b != axis)))
    step = int(random.choice([1, 1, 2, 3, 5]))
    outline = random.random() < 0.3
    for number in filled[int(random.integers(min(step, len(filled)))) :: step]:
        flat = np.take(mask, number, axis)
        if outline:
            flat = flat & ~ndimage.binary_erosion(flat)
        marks.strokes.append(_placed(np.argwhere(flat).astype(float), axis, int(number)) * spacing)


def _strokes(
    random: Random,
    marks: Marks,
    mask: Bools,
    spacing: NDArray[np.float64],
    axis: int,
    number: int,
    size: float,
    rings: bool,
) -> None:
    """A stroke on the structure on one slice, and sometimes a loose ring around it or a stroke next to it."""
    others = [b for b in range(3) if b != axis]
    flat = np.take(mask, number, axis)
    if not flat.any():
        return
    depth = ndimage.distance_transform_edt(np.pad(flat, 1), sampling=spacing[others])[1:-1, 1:-1]
    line = _line(random, np.argwhere(depth >= depth.max() * random.uniform(0.15, 0.7)).astype(float))
    line += ndimage.gaussian_filter1d(random.standard_normal(line.shape), 2, axis=0) * random.uniform(0, 1.0)
    at = np.clip(np.rint(line), 0, np.array(flat.shape) - 1).astype(int)
    line = line[flat[tuple(at.T)]]
    if len(line):
        marks.strokes.append(_placed(line, axis, number) * spacing)
    if not rings:
        return
    away = ndimage.distance_transform_edt(~flat, sampling=spacing[others])
    gap = size * random.uniform(0.06, 0.9)
    ring = np.argwhere((away >= gap) & (away < gap + max(1.0, spacing[others].max()) * 1.2)).astype(float)
    if len(ring) < 3:
        return
    middle_ = np.argwhere(flat).mean(0)
    turn = np.arctan2(*(ring - middle_).T)
    ring = ring[np.argsort(turn)]
    if random.random() < 0.4:  # a part of the ring
        start, length = int(random.integers(len(ring))), max(3, int(len(ring) * random.uniform(0.1, 0.7)))
        ring = np.roll(ring, -start, 0)[:length]
    marks.erasers.append(_placed(ring, axis, number) * spacing)


def _line(random: Random, voxels: Floats) -> NDArray[np.float64]:
    """A stroke through two or three voxels."""
    ends = voxels[random.integers(len(voxels), size=int(random.integers(2, 4)))]
    pieces = [np.linspace(a, b, max(2, int(np.abs(b - a).max() * 1.5))) for a, b in itertools.pairwise(ends)]
    return np.concatenate(pieces)


def _placed(flat: NDArray[np.float64], axis: int, number: int) -> NDArray[np.float64]:
    return np.insert(flat, axis, number, axis=1)


def _bounds(mask: Bools) -> tuple[Voxels, Voxels]:
    sides = [np.flatnonzero(mask.any(tuple(b for b in range(3) if b != axis))) for axis in range(3)]
    return np.array([side[0] for side in sides]), np.array([side[-1] for side in sides])


def _flat(mask: Bools) -> list[int]:
    """The axes along which an image has only one voxel, which distances to borders ignore."""
    return [axis for axis in range(3) if mask.shape[axis] == 1]


def _depths(
    mask: Bools, spacing: NDArray[np.float64], flat: Sequence[int]
) -> tuple[NDArray[np.float64], tuple[slice, ...]]:
    """Distances to the border in a mask's bounding box, ignoring `flat` axes, and that box."""
    low, high = _bounds(mask)
    region = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    part = mask[region]
    spacing = np.where(np.isin(np.arange(3), flat), 1e6, spacing)
    step = max(1, int(np.cbrt(part.size / 64**3)))
    if step > 1 and part[::step, ::step, ::step].any():
        coarse = ndimage.distance_transform_edt(np.pad(part[::step, ::step, ::step], 1), sampling=spacing * step)
        depth = np.zeros(part.shape)
        depth[::step, ::step, ::step] = coarse[1:-1, 1:-1, 1:-1]
        return depth, region
    return ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing)[1:-1, 1:-1, 1:-1], region
