"""Refinement of an answer's border at the image's own resolution, by a minimum cut.

The network sees the structure in a few dozen voxels along each axis. A minimum cut (`rayapp.inference.energy`) then
draws its border from the network's log-odds, from the intensities inside and around the answer, and along the image's
edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.energy.graph_cut import FIXED, graph_cut
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.zoom.glance import Glance, Mask
from rayapp.inference.zoom.marks import Marks
from rayapp.inference.zoom.view import SLAB, Bools, Floats, Source, transfer

SURE = 7.0
"""Magnitude of the network's logit from which a voxel's label is fixed."""
LIKELY = 1.0
"""Magnitude of the network's logit from which a voxel is a sample of the intensities inside or around the structure."""
BOUND = 3.0
"""Bound on the log-odds from a voxel's intensity."""
STIFFNESS = 3.0
"""Cost of the border's surface, relative to that of `graph_cut`."""
BINS = 24
FEWEST = 30
"""Least number of samples inside, and around, an answer to learn intensities from."""
BORDER = 2.0
"""Depth in an answer, in voxels of its view, in which no voxel is certain."""
KEPT = 0.5
"""Least share of a mask that must remain when its border is refined."""
MARGIN = 0.12
"""Margin around an answer that is included in the cut, as a share of the answer's size."""
MOST = 400_000
"""Largest number of voxels in the cut; a larger part of the image is cut at a coarser resolution."""


def drawn(answer: Glance, mask: Mask, source: Source, marks: Marks, core: float | None = None) -> Mask:
    """Refine a mask's border along the edges of the image.

    Args:
        answer: the network's answer.
        mask: its mask on the image's voxels.
        source: the image.
        marks: the prompts; points and strokes are constraints of the cut.
        core: depth, relative to the answer's largest, at which a voxel is inside for certain; None: at none.

    Returns:
        The mask, or the given one where too little of it would remain.
    """
    bounds = mask.bounds(source.spacing)
    if bounds is None:
        return mask
    low, high = np.array(bounds.low), np.array(bounds.high)
    margin = np.maximum(MARGIN * (high - low), 2 * source.spacing)
    first = np.clip(np.floor((low - margin) / source.spacing), 0, None).astype(int)
    last = np.minimum(np.ceil((high + margin) / source.spacing).astype(int) + 1, source.array.shape)
    step = _step(last - first)
    spacing = np.asarray(source.spacing * step, float)
    a, b, c = (slice(int(x), int(y)) for x, y in zip(first, last, strict=True))
    image = _coarse(source.array[a, b, c], step)
    at = (first + (step - 1) / 2) * source.spacing
    logits = transfer(answer.connected(marks.on_structure()).logits, answer.view, at, spacing, image.shape)
    inside, outside = logits > LIKELY, logits < -LIKELY
    if inside.sum() < FEWEST or outside.sum() < FEWEST:
        return mask
    costs = (np.clip(logits, -SURE, SURE) + _evidence(image, inside, outside)) / STIFFNESS
    costs[logits >= SURE], costs[logits <= -SURE] = FIXED, -FIXED
    if core is not None:
        costs[transfer(_core(answer, core), answer.view, at, spacing, image.shape) > 0.5] = FIXED
    middle, spread = np.median(image[inside]), max(float(image[inside].std()), 1e-6)
    shown = ((image - middle) / (2 * spread)).astype(np.float32)
    held = _held(marks, at, spacing, image.shape)
    cut = graph_cut(costs.astype(np.float32), shown[None], held, spacing)
    parts, count = ndimage.label(cut, np.ones((3, 3, 3)))
    known = np.zeros(count + 1, bool)
    known[parts[cut & ((logits > 0) | (held == FOREGROUND))]] = True  # what only looks alike is something else
    known[0] = False
    found = _fine(known[parts], step, (last - first).tolist())
    if found.sum() < KEPT * mask.inside.sum():  # what is so thin or faint is not worth its surface
        return mask
    return Mask((a, b, c), found)


def _core(answer: Glance, share: float) -> Floats:
    """The core of an answer, as 1 in its view: what lies deeper than a share of the largest depth."""
    depth = ndimage.distance_transform_edt(np.pad(answer.logits > 0, 1))[1:-1, 1:-1, 1:-1]
    return np.asarray(depth > max(BORDER, share * depth.max()), np.float32)


def _step(shape: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxels along each axis that are averaged to one, so that at most `MOST` are left."""
    step = np.ones(3, int)
    while (-(-shape // step)).prod() > MOST:
        step[(-(-shape // step)).argmax()] += 1
    return step


def _coarse(values: NDArray[np.generic], step: NDArray[np.int64]) -> Floats:
    """Means of blocks of `step` voxels along each axis; blocks at the end may be smaller."""
    planes = SLAB * int(step[2])  # at a time: a large image must not be held as floats
    slabs = [
        _means(np.asarray(values[:, :, k : k + planes], np.float32), step) for k in range(0, values.shape[2], planes)
    ]
    return np.concatenate(slabs, axis=2)


def _means(values: Floats, step: NDArray[np.int64]) -> Floats:
    for axis, count in enumerate(step.tolist()):
        if count > 1:
            missing = -values.shape[axis] % count
            widths = [(0, missing if other == axis else 0) for other in range(3)]
            rows = np.moveaxis(np.pad(values, widths, mode="edge"), axis, 0)
            values = np.moveaxis(rows.reshape(-1, count, *rows.shape[1:]).mean(1), 0, axis)
    return np.ascontiguousarray(values)


def _fine(mask: Bools, step: NDArray[np.int64], shape: list[int]) -> Bools:
    """Upsample a coarse mask to the image's voxels, with a linearly interpolated border."""
    if (step == 1).all():
        return mask
    field = mask.astype(np.float32)
    for axis in (0, 1):
        field = _between(field, axis, int(step[axis]), np.arange(shape[axis]))
    fine = np.empty(shape, bool)
    for k in range(0, shape[2], SLAB):
        fine[:, :, k : k + SLAB] = _between(field, 2, int(step[2]), np.arange(k, min(k + SLAB, shape[2]))) > 0.5
    return fine


def _between(field: Floats, axis: int, count: int, at: NDArray[np.int64]) -> Floats:
    """A field of blocks of `count` voxels along an axis, interpolated linearly at some of these voxels."""
    places = (at - (count - 1) / 2) / count
    before = np.clip(np.floor(places).astype(int), 0, field.shape[axis] - 1)
    after = np.minimum(before + 1, field.shape[axis] - 1)
    share = np.clip(places - before, 0, 1).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
    return np.asarray(field.take(before, axis) * (1 - share) + field.take(after, axis) * share, np.float32)


def _evidence(image: Floats, inside: Bools, outside: Bools) -> Floats:
    """Log-odds of each voxel by its intensity, from smoothed histograms of the samples inside and outside."""
    low, high = np.percentile(image[inside], (1, 99))
    width = max(float(high - low), 1e-6)
    bins = np.clip((image - low + width) / (3 * width) * BINS, 0, BINS - 1).astype(np.intp)
    smooth = np.array([1, 2, 3, 2, 1]) / 9
    within, beyond = (
        np.convolve(np.bincount(bins[where], minlength=BINS) / where.sum(), smooth, "same") + 1e-3
        for where in (inside, outside)
    )
    odds = np.clip(np.log(within / beyond), -BOUND, BOUND).astype(np.float32)
    return np.asarray(odds[bins])


def _held(
    marks: Marks, at: NDArray[np.float64], spacing: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Points and strokes as a scribble map."""
    held = np.zeros(shape, np.uint8)
    for groups, value in (
        (marks.strokes, FOREGROUND),
        (marks.erasers, BACKGROUND),
        (marks.include, FOREGROUND),
        (marks.exclude, BACKGROUND),
    ):
        for group in groups:
            voxels = np.rint((np.reshape(group, (-1, 3)) - at) / spacing).astype(int)
            voxels = voxels[((voxels >= 0) & (voxels < shape)).all(1)]
            held[tuple(voxels.T)] = value
    return held
