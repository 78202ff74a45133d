"""Adaptive zoom: from prompts to a mask, by comparing views, looking closer at the structure, and refining its
border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayapp.inference.prompts import outlines
from rayapp.inference.zoom.border import drawn
from rayapp.inference.zoom.correction import Correction
from rayapp.inference.zoom.glance import Ask, Glance, Mask, believed, candidates, framed, glances, ladder, solid
from rayapp.inference.zoom.marks import Box, Marks, bounds_of
from rayapp.inference.zoom.view import Bools, Source

UNLIKELY = 0.6
"""Weight of the doubt in an answer to a correction, see `Correction.doubt`."""
SMALLER = 0.4
"""Size of the views that are compared where voxels are excluded, relative to those after other corrections."""
CORE = 0.5
"""Depth, relative to the largest, at which the answer to a correction is certain when its border is refined."""


@dataclass(frozen=True)
class Optics:
    """Settings of the views.

    Attributes:
        coarse: edge, in voxels, of the views that are compared.
        steps: number of views that are compared after a click.
        steps_again: the same after the correction of a mask.
        fine: edge, in voxels, of the closer view of the structure if there was no mask before.
        again: the same if there was one.
        margin: size of the closer view, relative to the structure's longest side.
        box_margin: the same if a box gives the structure's extent.
        looks: number of closer views inside a box, each starting from the previous answer; without a box, or with a
            mask to start from, there is one.
    """

    coarse: int = 32
    steps: int = 7
    steps_again: int = 3
    fine: int = 64
    again: int = 48
    margin: float = 1.35
    box_margin: float = 1.2
    looks: int = 2


@dataclass(frozen=True)
class Outcome:
    """An answer to prompts.

    Attributes:
        mask: the structure.
        quality: expected Dice score.
        smaller, larger: number of smaller and of larger alternatives.
        size: position of this answer relative to the likeliest: 1 for the next larger, -1 for the next smaller.
    """

    mask: Mask
    quality: float
    smaller: int = 0
    larger: int = 0
    size: int = 0


def outcomes(
    ask: Ask,
    source: Source,
    marks: Marks,
    previous: Mask | None = None,
    optics: Optics = Optics(),
    size: int = 0,
    told: Marks = Marks(),  # noqa: B008
) -> Iterator[Outcome]:
    """Yield answers to prompts, a coarse one first.

    Args:
        ask: the network.
        source: the image.
        marks: all prompts so far, at least one for the structure unless there is a mask to start from.
        previous: the mask to start from, or the answer to the previous prompts; an empty one is none.
        optics: settings of the views.
        size: which alternative to give: 1 for the next larger than the likeliest, -1 for the next smaller, and so on.
        told: the prompts among `marks` that correct `previous`.
    """
    known = previous.bounds(source.spacing) if previous is not None else None
    previous = None if known is None else previous
    smallest = 8 * float(source.spacing.min())
    compared: list[Glance] = []
    near, steps = None, optics.steps
    if known is not None:
        wide = _around(known, marks)
        views = [framed(wide, optics.coarse, margin, smallest, source.column) for margin in (optics.margin, 2.2)]
        compared += glances(ask, source, views, marks, previous)
        near, steps = views[0].size, optics.steps_again
        if told.denied():
            near, steps = near * SMALLER, steps + 1
    if marks.bounds() is not None:
        compared += glances(ask, source, ladder(source, marks, optics.coarse, steps, near), marks, doubt=True)
    correction = Correction(previous, told, source)
    doubts = np.array([correction.doubt(answer) for answer in compared])
    scores = believed(compared, marks, previous, source.spacing) - UNLIKELY * doubts
    meant, likeliest = candidates(compared, scores)
    at = int(np.clip(likeliest + size, 0, len(meant) - 1))
    best, others = meant[at], (at, len(meant) - 1 - at, at - likeliest)

    def settled(mask: Mask) -> Mask:
        """The likely changes, unless an alternative was asked for; prompts are enforced."""
        return enforced(correction.accepted(mask) if at == likeliest else mask, source, marks)

    mask = settled(rendered(best, source, marks))
    yield Outcome(mask, best.quality, *others)
    boxes = [box for box in marks.boxes if solid(box, source)]
    margin = optics.box_margin if len(boxes) == 1 else optics.margin
    quality, seen = best.quality, best
    edge, core = (optics.fine, None) if previous is None else (optics.again, CORE)
    for _ in range(optics.looks if boxes and previous is None else 1):
        found = boxes[0] if len(boxes) == 1 else mask.bounds(source.spacing)
        if found is None:
            break
        view = framed(_around(found, marks), edge, margin, smallest, source.column)
        closer = glances(ask, source, [view], marks, mask)[0]
        closest = settled(rendered(closer, source, marks))
        if not closest.inside.any() or (previous is not None and closer.quality < quality):
            break
        mask, quality, seen = closest, closer.quality, closer
    yield Outcome(settled(drawn(seen, mask, source, marks, core)), quality, *others)


def rendered(answer: Glance, source: Source, marks: Marks) -> Mask:
    """Convert an answer to a mask on the image's voxels, with the prompts enforced."""
    seeds = marks.on_structure()
    region, piece = answer.connected(seeds).on_image(source)
    low, high = np.array([[side.start, side.stop] for side in region]).T
    drawn = [seeds, *(np.array([box.low, box.high]) for box in map(bounds_of, marks.lassos))]
    placed = np.rint(np.concatenate(drawn) / source.spacing).astype(int)
    if len(placed):
        low, high = np.minimum(low, placed.min(0)), np.maximum(high, placed.max(0) + 1)
    low, high = np.clip(low, 0, None), np.minimum(high, source.array.shape)
    inside = np.zeros(tuple(high - low), bool)
    inside[tuple(slice(side.start - int(a), side.stop - int(a)) for side, a in zip(region, low, strict=True))] = piece
    a, b, c = (slice(int(x), int(y)) for x, y in zip(low, high, strict=True))
    return enforced(Mask((a, b, c), inside), source, marks)


def enforced(mask: Mask, source: Source, marks: Marks) -> Mask:
    """Enforce the prompts on a mask.

    On a slice with lassos the mask is what they enclose; strokes take precedence over lassos, and points over strokes.
    Outside boxes of more than one slice the mask is empty.
    """
    inside = mask.inside.copy()
    start = np.array([side.start for side in mask.region])
    for where, enclosed in _enclosed(marks, source).items():
        axis, index = where
        if mask.region[axis].start <= index < mask.region[axis].stop:
            sides = tuple(side for other, side in enumerate(mask.region) if other != axis)
            outlines.plane_of(inside, (axis, index - int(start[axis])))[...] = enclosed[sides]
    for points, value in ((marks.strokes, True), (marks.erasers, False), (marks.include, True), (marks.exclude, False)):
        for group in points:
            inside[tuple(mask.indices(np.reshape(group, (-1, 3)), source.spacing).T)] = value
    boxes = [box for box in marks.boxes if solid(box, source)]
    if boxes:
        allowed = np.zeros_like(inside)
        for box in boxes:
            low = np.ceil(np.array(box.low) / source.spacing - 1e-6).astype(int) - start
            high = np.floor(np.array(box.high) / source.spacing + 1e-6).astype(int) + 1 - start
            allowed[tuple(slice(max(0, a), max(0, b)) for a, b in zip(low, high, strict=True))] = True
        inside &= allowed
    return Mask(mask.region, inside)


def _enclosed(marks: Marks, source: Source) -> dict[outlines.Slice, Bools]:
    """The regions that lassos enclose on each slice, as for every method (`rayapp.inference.prompts.outlines`)."""
    curves = []
    for lasso in marks.lassos:
        others = [axis for axis in range(3) if axis != lasso.axis]
        at = np.full(len(lasso.curve), round(lasso.at / source.spacing[lasso.axis]))
        voxels = np.round(lasso.curve / source.spacing[others], 6)  # millimetres and back may be off by a rounding
        i, j, k = np.insert(voxels, lasso.axis, at, axis=1).T.tolist()
        curves.append(list(zip(i, j, k, strict=True)))
    a, b, c = source.array.shape
    return outlines.enclosed(curves, (a, b, c))


def _around(box: Box, marks: Marks) -> Box:
    """The smallest box that contains `box` and the prompts for the structure."""
    bounds = marks.bounds()
    if bounds is None:
        return box
    low, high = np.minimum(box.low, bounds.low), np.maximum(box.high, bounds.high)
    return Box.of(low, high)
